// Runs a network with 4 or 8 bits a weight on a prompt, or on one new token of each text, in one call.

#include "cached_attention.h"
#include "quantized_products.h"

namespace pangu {
namespace {

// These structures have the layout in which kernel_network.py passes them.
struct Layer {
  const float *gamma1, *beta1, *gamma2, *beta2;
  Matrix queries, keys_values, projection, mapping, output;
};

struct Network {
  int64_t hidden, inner, heads, block_size, layers, is_fast_gelu;
  float epsilon;
  const float *gamma, *beta;
  const Layer *layer;
  Matrix words;
};

struct Tokens {
  int64_t count, wanted, capacity, threads;
  const float *embedded, *queries;  // (count, H)
  const int32_t *rows, *places;     // (count): row and position in the cache
  const int32_t *which;             // (wanted): tokens that need logits
  float *const *caches;             // keys and values (rows, A, capacity, d) of each layer
  float *logits;                    // (wanted, V)
};

class Reader {
 public:
  Reader(const Network &network, const Tokens &tokens)
      : n_(network), t_(tokens), hidden_input_(t_.count, n_.hidden, n_.block_size, n_.layer->queries.bits),
        query_input_(hidden_input_), inner_input_(t_.count, n_.inner, n_.block_size, n_.layer->output.bits),
        wanted_input_(t_.wanted, n_.hidden, n_.block_size, n_.words.bits), tiles_(hidden_input_.tiles),
        head_size_(n_.hidden / n_.heads), factor_(1 / std::sqrt(static_cast<float>(head_size_))), team_(t_.threads),
        x_(tiles_ * n_.hidden), top_queries_(x_.size()), queries_(x_.size()), mixed_(x_.size()),
        inner_(tiles_ * n_.inner), wanted_(wanted_input_.tiles * n_.hidden), scratch_(t_.threads, Scratch(*this)) {}

  void run() {
    team_.run([this](int64_t member) { work(member); });
  }

 private:
  using Lanes = std::vector<Floats>;

  // Memory of one thread.
  struct Scratch {
    Multiplier multiplier;
    AttentionScratch attention;
    Lanes means, factors;
    std::vector<float> query;

    explicit Scratch(const Reader &r)
        : multiplier(std::max(r.tiles_, r.wanted_input_.tiles)), attention(r.t_.capacity), means(r.tiles_),
          factors(r.tiles_), query(r.head_size_) {}
  };

  void work(int64_t member) {
    if (member == 0) {
      gather(t_.embedded, x_);
      gather(t_.queries, top_queries_);
    }
    team_.wait();
    for (int64_t index = 0; index < n_.layers; ++index) {
      const Layer &layer = n_.layer[index];
      const bool is_query_layer = index == n_.layers - 1;
      if (is_query_layer) {
        normalize_in_place(member);
        round(top_queries_, n_.hidden, member, query_input_);
      }
      normalize_and_round(layer.gamma1, layer.beta1, member);
      project(layer, t_.caches + 2 * index, is_query_layer ? query_input_ : hidden_input_, member);
      attend(t_.caches + 2 * index, member);
      round(mixed_, n_.hidden, member, hidden_input_);
      const auto add = [this](int64_t tile, int64_t begin, int64_t end, const Floats *y) {
        for (int64_t row = begin; row < end; ++row) x_[tile * n_.hidden + row] += *y++;
      };
      multiply(layer.projection, hidden_input_, member, add);
      normalize_and_round(layer.gamma2, layer.beta2, member);
      multiply(layer.mapping, hidden_input_, member, [this](int64_t tile, int64_t begin, int64_t end, const Floats *y) {
        for (int64_t row = begin; row < end; ++row) inner_[tile * n_.inner + row] = activate(*y++);
      });
      round(inner_, n_.inner, member, inner_input_);
      multiply(layer.output, inner_input_, member, add);
    }
    if (t_.wanted) head(member);
  }

  // Copies rows (count, H) into tiles.
  void gather(const float *rows, Lanes &to) const {
    for (int64_t i = 0; i < t_.count; ++i) {
      Floats *tile = to.data() + i / kLanes * n_.hidden;
      for (int64_t k = 0; k < n_.hidden; ++k) tile[k][i % kLanes] = rows[i * n_.hidden + k];
    }
  }

  // Computes means and scales of all tokens. Every member does this for itself.
  const Scratch &moments(int64_t member) {
    Scratch &scratch = scratch_[member];
    for (int64_t tile = 0; tile < tiles_; ++tile) {
      const Floats *x = x_.data() + tile * n_.hidden;
      Floats total{}, squares{};
      for (int64_t k = 0; k < n_.hidden; ++k) total += x[k];
      const Floats mean = total / static_cast<float>(n_.hidden);
      for (int64_t k = 0; k < n_.hidden; ++k) squares += (x[k] - mean) * (x[k] - mean);
      scratch.means[tile] = mean;
      for (int i = 0; i < kLanes; ++i) scratch.factors[tile][i] = 1 / std::sqrt(squares[i] / n_.hidden + n_.epsilon);
    }
    return scratch;
  }

  void normalize_in_place(int64_t member) {
    const Scratch &scratch = moments(member);
    team_.wait();
    for (int64_t tile = 0; tile < tiles_; ++tile) {
      for (int64_t k = team_.share(n_.hidden, member); k < team_.share(n_.hidden, member + 1); ++k) {
        Floats &x = x_[tile * n_.hidden + k];
        x = (x - scratch.means[tile]) * scratch.factors[tile] * n_.gamma[k] + n_.beta[k];
      }
    }
    team_.wait();
  }

  void normalize_and_round(const float *gamma, const float *beta, int64_t member) {
    const Scratch &scratch = moments(member);
    round(x_, n_.hidden, member, hidden_input_, [&](Floats x, int64_t tile, int64_t k) {
      return (x - scratch.means[tile]) * scratch.factors[tile] * gamma[k] + beta[k];
    });
  }

  void round(const Lanes &x, int64_t columns, int64_t member, Input &to) {
    round(x, columns, member, to, [](Floats x, int64_t, int64_t) { return x; });
  }

  // Rounds function(x, tile, column) into `to`. Each member does its share of the blocks, and waits for the others.
  template <class Function>
  void round(const Lanes &x, int64_t columns, int64_t member, Input &to, const Function &function) {
    for (int64_t tile = 0; tile < to.tiles; ++tile) {
      for (int64_t block = team_.share(to.blocks, member); block < team_.share(to.blocks, member + 1); ++block) {
        const int64_t first = block * to.block_size, count = std::min(to.block_size, columns - first);
        Floats values[kMostBlock];
        for (int64_t i = 0; i < count; ++i) values[i] = function(x[tile * columns + first + i], tile, first + i);
        std::fill(values + count, values + to.block_size, Floats{});
        to.put(tile, block, values);
      }
    }
    team_.wait();
  }

  template <class Store>
  void multiply(const Matrix &matrix, const Input &input, int64_t member, const Store &store) {
    const int64_t panels = Multiplier::panels(matrix);
    for (int64_t panel; (panel = team_.next(panels, member)) < panels;) {
      scratch_[member].multiplier.multiply(matrix, input, panel, store);
    }
    team_.wait();
  }

  Floats activate(Floats x) const {
    const Floats slope = n_.is_fast_gelu ? all(kGeluSlope) : 1.5957691f + 0.0713548f * x * x;  // gelu, tanh form
    return x / (1 + exponential<Floats, Ints>(-slope * x));
  }

  // Computes queries, and writes new keys and values to the caches of a layer.
  void project(const Layer &layer, float *const *caches, const Input &query_input, int64_t member) {
    const int64_t query_panels = Multiplier::panels(layer.queries);
    const int64_t panels = query_panels + Multiplier::panels(layer.keys_values);
    for (int64_t panel; (panel = team_.next(panels, member)) < panels;) {
      const auto copy = [this](int64_t tile, int64_t begin, int64_t end, const Floats *y) {
        std::copy(y, y + end - begin, queries_.data() + tile * n_.hidden + begin);
      };
      const auto keep = [&](int64_t tile, int64_t begin, int64_t end, const Floats *y) {
        store_in_cache(caches, tile, begin, end, y);
      };
      Multiplier &multiplier = scratch_[member].multiplier;
      panel < query_panels ? multiplier.multiply(layer.queries, query_input, panel, copy)
                           : multiplier.multiply(layer.keys_values, hidden_input_, panel - query_panels, keep);
    }
    team_.wait();
  }

  // Stores features [begin, end) of the keys and values. The features of the values come after those of the keys.
  void store_in_cache(float *const *caches, int64_t tile, int64_t begin, int64_t end, const Floats *y) const {
    for (int64_t token = tile * kLanes; token < std::min((tile + 1) * kLanes, t_.count); ++token) {
      for (int64_t row = begin; row < end;) {
        const int64_t feature = row % n_.hidden, first = feature % head_size_;
        const int64_t count = std::min(head_size_ - first, end - row);
        auto *to = cached(caches[row / n_.hidden], token, feature / head_size_) + t_.places[token] * head_size_ + first;
        for (int64_t k = 0; k < count; ++k) to[k] = y[row - begin + k][token % kLanes];
        row += count;
      }
    }
  }

  // Returns the cached keys or values (capacity, d) of one head, for the text of a token.
  float *cached(float *cache, int64_t token, int64_t head) const {
    return cache + (t_.rows[token] * n_.heads + head) * t_.capacity * head_size_;
  }

  void attend(float *const *caches, int64_t member) {
    AttentionScratch &attention = scratch_[member].attention;
    float *query = scratch_[member].query.data();
    for (int64_t item; (item = team_.next(tiles_ * n_.heads, member)) < tiles_ * n_.heads;) {
      const int64_t tile = item / n_.heads, head = item % n_.heads, first = tile * n_.hidden + head * head_size_;
      const int64_t begin = tile * kLanes, end = std::min(begin + kLanes, t_.count);
      const auto text = [&](int64_t token) {
        return CachedHead{cached(caches[0], token, head), cached(caches[1], token, head), head_size_};
      };
      if (end - begin > kLanes / 4 && t_.rows[begin] == t_.rows[end - 1]) {
        Ints places{};
        std::copy(t_.places + begin, t_.places + end, reinterpret_cast<int32_t *>(&places));
        attend_tiles<1>(text(begin), &places, t_.places[end - 1] + 1, factor_, &queries_[first], &mixed_[first], 0,
                        attention);
        continue;
      }
      for (int64_t token = begin; token < end; ++token) {
        for (int64_t k = 0; k < head_size_; ++k) query[k] = queries_[first + k][token - begin];
        attend_token(text(token), t_.places[token] + 1, factor_, query, attention);
        for (int64_t k = 0; k < head_size_; ++k) mixed_[first + k][token - begin] = query[k];
      }
    }
    team_.wait();
  }

  void head(int64_t member) {
    if (member == 0) {
      for (int64_t i = 0; i < t_.wanted; ++i) {
        const Floats *from = x_.data() + t_.which[i] / kLanes * n_.hidden;
        Floats *to = wanted_.data() + i / kLanes * n_.hidden;
        for (int64_t k = 0; k < n_.hidden; ++k) to[k][i % kLanes] = from[k][t_.which[i] % kLanes];
      }
    }
    team_.wait();
    round(wanted_, n_.hidden, member, wanted_input_);
    multiply(n_.words, wanted_input_, member, [this](int64_t tile, int64_t begin, int64_t end, const Floats *y) {
      for (int64_t i = tile * kLanes; i < std::min((tile + 1) * kLanes, t_.wanted); ++i) {
        float *logits = t_.logits + i * n_.words.rows;
        for (int64_t row = begin; row < end; ++row) logits[row] = y[row - begin][i % kLanes];
      }
    });
  }

  const Network &n_;
  const Tokens &t_;
  Input hidden_input_, query_input_, inner_input_, wanted_input_;
  const int64_t tiles_, head_size_;
  const float factor_;
  Team team_;
  Lanes x_, top_queries_, queries_, mixed_, inner_, wanted_;
  std::vector<Scratch> scratch_;
};

}  // namespace
}  // namespace pangu

// Returns 0, or 1 after an exception.
extern "C" int pangu_read_tokens(const pangu::Network *network, const pangu::Tokens *tokens) {
  try {
    pangu::Reader(*network, *tokens).run();
    return 0;
  } catch (...) {
    return 1;
  }
}
