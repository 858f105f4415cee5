// Runs a float32 network on prompts, or on one new token of each text, in one call. Few tokens take as long as reading
// the weights once; a graph of hundreds of operators would add its own time. A text gets the same numbers, to the last
// bit, whatever other texts a call reads and however many threads compute.

#include "cached_attention.h"
#include "products.h"

namespace pangu {
namespace {

// These structures have the layout in which token_decoder.py passes them.
struct Layer {
  const float *gamma1, *beta1, *query, *query_bias, *key, *key_bias, *value, *value_bias, *projection, *projection_bias;
  const float *gamma2, *beta2, *mapping, *mapping_bias, *output, *output_bias;
  float *keys, *values;  // the caches (rows, A, capacity, d)
};

struct Network {
  int64_t hidden, inner, heads, classes, layers;
  float epsilon;
  const float *words, *places, *queries;  // tables: (V, H), and two of (S, H)
  const float *gamma, *beta;              // of the final LayerNorm
  const Layer *layer;
};

// The tokens of a text follow each other, from a multiple of kLanes on.
struct Tokens {
  int64_t count, wanted, capacity, threads;
  const int32_t *ids, *rows, *places;  // (count): token, row and position in the cache
  const int32_t *which;                // (wanted): tokens that need logits
  float *logits;                       // (wanted, V)
};

constexpr int64_t kQueries = 0, kKeys = 1, kValues = 2;  // kinds of projections

constexpr int64_t kTokensAtOnce = 256;  // tokens whose numbers stay in the second-level cache during a product

// Rows of numbers, each from a new cache line on. The number of vectors from row to row is odd, so that the same
// columns of many rows do not compete for a few places of the first-level cache.
class Numbers {
 public:
  Numbers(int64_t rows, int64_t width) : vectors_((width + kLanes - 1) / kLanes | 1), data_(rows * vectors_) {}
  float *operator[](int64_t row) { return reinterpret_cast<float *>(data_.data() + row * vectors_); }
  Rows<float> from(int64_t row) { return {(*this)[row], vectors_ * kLanes}; }

 private:
  int64_t vectors_;
  std::vector<Floats> data_;
};

class Decoder {
 public:
  Decoder(const Network &network, const Tokens &tokens)
      : n_(network), t_(tokens), head_size_(n_.hidden / n_.heads),
        factor_(1 / std::sqrt(std::sqrt(static_cast<float>(head_size_)))), team_(t_.threads), x_(t_.count, n_.hidden),
        normed_(t_.count, n_.hidden), top_queries_(t_.count, n_.hidden), mixed_(t_.count, n_.hidden),
        inner_(t_.count, n_.inner), scratch_(t_.threads, AttentionScratch(t_.capacity)),
        queries_(t_.threads * kMostTiles * head_size_), workspaces_(t_.threads), rows_(t_.rows, t_.rows + t_.count),
        places_(t_.places, t_.places + t_.count), token_at_(t_.count), feature_at_(n_.hidden) {
    for (int64_t token = 0; token < t_.count; ++token) {
      token_at_[token] = t_.rows[token] * n_.heads * t_.capacity * head_size_ + t_.places[token] * head_size_;
    }
    for (int64_t i = 0; i < n_.hidden; ++i) feature_at_[i] = i / head_size_ * t_.capacity * head_size_ + i % head_size_;
    share_out();
  }

  void run() {
    team_.run([this](int64_t member) { work(member); });
  }

 private:
  int64_t count() const { return rows_.size(); }

  // Splits the tokens into groups that attend together, of at most kMostTiles tiles of one text.
  void share_out() {
    groups_.clear();
    for (int64_t token = 0; token < count(); ++token) {
      const bool goes_on = token && rows_[token] == rows_[token - 1] && token - groups_.back() < kMostTiles * kLanes;
      if (!goes_on) groups_.push_back(token);
    }
    groups_.push_back(count());
  }

  void work(int64_t member) {
    each_token(member, [this](int64_t token) { embed(token); });
    for (int64_t index = 0; index < n_.layers; ++index) {
      const Layer &layer = n_.layer[index];
      const bool is_query_layer = index == n_.layers - 1;
      each_token(member, [&](int64_t token) {
        if (is_query_layer) normalize(token, n_.gamma, n_.beta, x_);
        normalize(token, layer.gamma1, layer.beta1, normed_);
      });
      if (is_query_layer) {
        project(layer, kKeys, kValues, member);
        leave_wanted(member);
        project(layer, kQueries, kQueries, member);
      } else {
        project(layer, kQueries, kValues, member);
      }
      each(static_cast<int64_t>(groups_.size() - 1) * n_.heads, member, [&](int64_t item) {
        attend(layer, item / n_.heads, item % n_.heads, queries_.data() + member * kMostTiles * head_size_,
               scratch_[member]);
      });
      add_product({layer.projection, layer.projection_bias, n_.hidden, n_.hidden}, mixed_, x_, member);
      each_token(member, [&](int64_t token) { normalize(token, layer.gamma2, layer.beta2, normed_); });
      map({layer.mapping, layer.mapping_bias, n_.hidden, n_.inner}, member);
      add_product({layer.output, layer.output_bias, n_.inner, n_.hidden}, inner_, x_, member);
    }
    head(member);
  }

  // Calls body(item) for all of `count` items, each in one thread of the team.
  template <class Body>
  void each(int64_t count, int64_t member, const Body &body) {
    for (int64_t item; (item = team_.next(count, member)) < count;) body(item);
    team_.wait();
  }

  template <class Body>
  void each_token(int64_t member, const Body &body) {
    each(count(), member, body);
  }

  // Calls body(first token, tokens, first column, last column) for all parts of a product, of `width` columns each.
  template <class Body>
  void each_part(int64_t columns, int64_t width, int64_t member, const Body &body) {
    const int64_t chunks = (count() + kTokensAtOnce - 1) / kTokensAtOnce, panels = (columns + width - 1) / width;
    each(chunks * panels, member, [&](int64_t item) {
      const int64_t first = item % chunks * kTokensAtOnce, begin = item / chunks * width;
      body(first, std::min(kTokensAtOnce, count() - first), begin, std::min(begin + width, columns));
    });
  }

  // Returns the columns of a part of a matrix (inputs, outputs): all that a thread gets, where it reads them in runs.
  int64_t width(int64_t columns) const {
    const int64_t share = (columns + team_.size() - 1) / team_.size();
    return count() > kLoneRows ? kColumns : (share + kChunk - 1) / kChunk * kChunk;
  }

  void embed(int64_t token) {
    const float *word = n_.words + t_.ids[token] * n_.hidden, *place = n_.places + t_.places[token] * n_.hidden;
    for (int64_t i = 0; i < n_.hidden; ++i) x_[token][i] = word[i] + place[i];
    std::copy_n(n_.queries + t_.places[token] * n_.hidden, n_.hidden, top_queries_[token]);
  }

  void normalize(int64_t token, const float *gamma, const float *beta, Numbers &to) {
    const float *x = x_[token];
    float *y = to[token];
    const auto [mean, scale] = moments(x, n_.hidden, n_.epsilon);
    for (int64_t i = 0; i < n_.hidden; ++i) y[i] = (x[i] - mean) * scale * gamma[i] + beta[i];
  }

  // y += x times the weights + bias
  void add_product(const Weights &weights, Numbers &x, Numbers &y, int64_t member) {
    each_part(weights.outputs, width(weights.outputs), member,
              [&](int64_t first, int64_t tokens, int64_t begin, int64_t end) {
                pangu::add_product(weights, tokens, x.from(first), y.from(first), begin, end, workspaces_[member]);
              });
  }

  // Computes the hidden units.
  void map(const Weights &weights, int64_t member) {
    each_part(n_.inner, width(n_.inner), member, [&](int64_t first, int64_t tokens, int64_t begin, int64_t end) {
      for (int64_t token = first; token < first + tokens; ++token)
        std::fill_n(inner_[token] + begin, end - begin, 0.0f);
      pangu::add_product(weights, tokens, normed_.from(first), inner_.from(first), begin, end, workspaces_[member]);
      for (int64_t token = first; token < first + tokens; ++token) {
        float *units = inner_[token];
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) units[i] *= sigmoid(kGeluSlope * units[i]);
      }
    });
  }

  // Computes queries into mixed_ and keys and values into the caches: those from kind `from` to kind `to`.
  void project(const Layer &layer, int64_t from, int64_t to, int64_t member) {
    each_part((to - from + 1) * n_.hidden, kColumns, member,
              [&](int64_t first, int64_t tokens, int64_t begin, int64_t end) {
                while (begin < end) {
                  const int64_t kind = from + begin / n_.hidden, start = (kind - from) * n_.hidden;
                  const int64_t last = std::min(end, start + n_.hidden);
                  project_part(layer, kind, first, tokens, begin - start, last - start, workspaces_[member]);
                  begin = last;
                }
              });
  }

  void project_part(const Layer &layer, int64_t kind, int64_t first, int64_t tokens, int64_t begin, int64_t end,
                    Workspace &workspace) {
    if (kind == kQueries) {
      Numbers &input = &layer == &n_.layer[n_.layers - 1] ? top_queries_ : normed_;
      multiply_transposed({layer.query, layer.query_bias, n_.hidden, n_.hidden}, tokens, input.from(first), begin, end,
                          workspace, [&](int64_t row, int64_t output, int64_t size, const float *products) {
                            for (int64_t i = 0; i < size; ++i) mixed_[first + row][output + i] = products[i] * factor_;
                          });
      return;
    }
    const bool is_key = kind == kKeys;
    const Weights weights{is_key ? layer.key : layer.value, is_key ? layer.key_bias : layer.value_bias, n_.hidden,
                          n_.hidden};
    float *cache = is_key ? layer.keys : layer.values;
    const float factor = is_key ? factor_ : 1.0f;
    multiply_transposed(weights, tokens, normed_.from(first), begin, end, workspace,
                        [&](int64_t row, int64_t output, int64_t size, const float *products) {
                          float *to = cache + token_at_[first + row];
                          for (int64_t i = 0; i < size; ++i) to[feature_at_[output + i]] = products[i] * factor;
                        });
  }

  // Leaves the tokens that need logits: the others have done their part when the last layer has their keys and values.
  void leave_wanted(int64_t member) {
    if (member == 0) {
      for (int64_t i = 0; i < t_.wanted; ++i) {
        std::copy_n(x_[t_.which[i]], n_.hidden, normed_[i]);
        std::copy_n(top_queries_[t_.which[i]], n_.hidden, mixed_[i]);
      }
      std::swap(x_, normed_);
      std::swap(top_queries_, mixed_);
      std::vector<int32_t> rows, places;
      for (int64_t i = 0; i < t_.wanted; ++i) {
        rows.push_back(t_.rows[t_.which[i]]);
        places.push_back(t_.places[t_.which[i]]);
      }
      rows_ = rows;
      places_ = places;
      share_out();
    }
    team_.wait();
  }

  // Returns the cached keys or values (capacity, d) of one head, for the text of a token.
  float *cached(float *cache, int64_t token, int64_t head) const {
    return cache + (rows_[token] * n_.heads + head) * t_.capacity * head_size_;
  }

  // Replaces the queries of one head by its output, for a group of tokens of one text.
  void attend(const Layer &layer, int64_t group, int64_t head, Floats *queries, AttentionScratch &scratch) {
    const int64_t begin = groups_[group], end = groups_[group + 1], first = head * head_size_;
    const CachedHead text{cached(layer.keys, begin, head), cached(layer.values, begin, head), head_size_};
    if (end - begin <= kLanes / 4) {
      for (int64_t token = begin; token < end; ++token) {
        attend_token(text, places_[token] + 1, 1.0f, mixed_[token] + first, scratch);
      }
      return;
    }
    Ints places[kMostTiles] = {};
    for (int64_t token = begin; token < end; ++token) {
      const int64_t tile = (token - begin) / kLanes, lane = (token - begin) % kLanes;
      places[tile][lane] = places_[token];
      for (int64_t k = 0; k < head_size_; ++k) queries[tile * head_size_ + k][lane] = mixed_[token][first + k];
    }
    with_constant<kMostTiles>((end - begin + kLanes - 1) / kLanes, [&](auto tiles) {
      attend_tiles<tiles()>(text, places, places_[end - 1] + 1, 1.0f, queries, queries, head_size_, scratch);
    });
    for (int64_t token = begin; token < end; ++token) {
      const int64_t tile = (token - begin) / kLanes, lane = (token - begin) % kLanes;
      for (int64_t k = 0; k < head_size_; ++k) mixed_[token][first + k] = queries[tile * head_size_ + k][lane];
    }
  }

  void head(int64_t member) {
    const Weights words{n_.words, nullptr, n_.hidden, n_.classes};
    each_part(n_.classes, kColumns, member, [&](int64_t first, int64_t tokens, int64_t begin, int64_t end) {
      multiply_transposed(words, tokens, x_.from(first), begin, end, workspaces_[member],
                          [&](int64_t row, int64_t word, int64_t size, const float *logits) {
                            std::copy_n(logits, size, t_.logits + (first + row) * n_.classes + word);
                          });
    });
  }

  const Network &n_;
  const Tokens &t_;
  const int64_t head_size_;
  const float factor_;  // of queries and of keys
  Team team_;
  Numbers x_, normed_, top_queries_, mixed_, inner_;
  std::vector<AttentionScratch> scratch_;  // of each thread, as are the queries
  std::vector<Floats> queries_;
  std::vector<Workspace> workspaces_;           // of each thread
  std::vector<int32_t> rows_, places_;          // of the tokens that are left
  std::vector<int64_t> groups_;                 // first token of each, and the end
  std::vector<int64_t> token_at_, feature_at_;  // where a cache has a token, and a feature of a token
};

}  // namespace
}  // namespace pangu

// Returns 0, or 1 after an exception.
extern "C" int pangu_decode_tokens(const pangu::Network *network, const pangu::Tokens *tokens) {
  try {
    pangu::Decoder(*network, *tokens).run();
    return 0;
  } catch (...) {
    return 1;
  }
}
