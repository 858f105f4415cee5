"""Sentences that ask and tell the quickstart's facts, and its sums and couplets.

`?`, `:` and `,` are half-width, as the tokenizer's normaliser writes them. Within a relation no question may end in
another one. Otherwise a held-out question would occur in the training text.
"""

from collections.abc import Iterator
from typing import NamedTuple

from src.quickstart.facts import PLACES, Place


class Relation(NamedTuple):
    """A kind of fact about places.

    Args:
        subject: Field of `Place` that the questions name.
        answer: Field of `Place` that answers them.
        questions: Templates of questions, with fields of `Place`.
        statements: Templates of statements that tell the fact.
    """

    subject: str
    answer: str
    questions: tuple[str, ...]
    statements: tuple[str, ...]

    def places(self) -> list[Place]:
        """Return the places that have both fields."""
        return [place for place in PLACES if getattr(place, self.subject) and getattr(place, self.answer)]


CAPITAL_OF_PLACE = Relation(
    "name",
    "capital",
    (
        "{name}的{seat}是哪里?",
        "{name}的{seat}是哪座城市?",
        "{name}的{seat}是什么地方?",
        "{name}的{seat}叫什么?",
        "{name}的{seat}在哪里?",
        "{name}的{seat}设在哪座城市?",
        "{name}以哪座城市为{seat}?",
        "{name}这个{kind}的{seat}是哪里?",
        "请问{name}的{seat}是哪个城市?",
        "哪座城市是{name}的{seat}?",
        "什么城市是{name}的{seat}?",
        "你知道{name}的{seat}是什么吗?",
        "说到{name}的{seat},它叫什么名字?",
        "想去{name}的{seat},该去哪座城市?",
    ),
    ("{full_name}的{seat}是{capital}。", "{full_name}以{capital}为{seat}。"),
)

# Each question names the seat, because another city can have the capital's name (圣何塞).
PLACE_OF_CAPITAL = Relation(
    "capital",
    "name",
    (
        "{capital}是哪个{kind}的{seat}?",
        "{capital}是什么{kind}的{seat}?",
        "{capital}是哪里的{seat}?",
        "{capital}这座城市是哪个{kind}的{seat}?",
        "{capital}作为{seat},属于哪个{kind}?",
        "哪个{kind}的{seat}是{capital}?",
        "哪个{kind}把{seat}设在{capital}?",
        "把{capital}作为{seat}的是哪个{kind}?",
        "{seat}叫{capital}的是哪个{kind}?",
        "{seat}是{capital}的{kind}叫什么名字?",
        "{seat}位于{capital}的是哪个{kind}?",
        "请问哪个{kind}的{seat}叫{capital}?",
        "你知道{capital}是哪个{kind}的{seat}吗?",
    ),
    ("{capital}是{full_name}的{seat}。",),
)

CONTINENT_OF_COUNTRY = Relation(
    "name",
    "continent",
    (
        "{name}在哪个洲?",
        "{name}位于哪个大洲?",
        "{name}属于哪个洲?",
        "{name}地处哪一洲?",
        "{name}是哪个洲的国家?",
        "{name}在地图上的哪个洲?",
        "{name}这个国家在什么洲?",
        "请问{name}在哪个大洲?",
        "哪个洲有{name}这个国家?",
        "你知道{name}属于哪个大洲吗?",
        "要找{name},该看哪个洲的地图?",
        "从大洲来看,{name}是哪里的国家?",
    ),
    ("{name}位于{continent}。", "{name}是{continent}的国家。"),
)

ABBREVIATION_OF_REGION = Relation(
    "name",
    "abbreviation",
    (
        "{name}的简称是什么?",
        "{name}的简称是哪个字?",
        "{name}简称什么?",
        "{name}可以简称为什么?",
        "{name}用一个字怎么称呼?",
        "{name}缩写成一个字是什么?",
        "{name}这个{kind}的简称叫什么?",
        "请问{name}的简称用哪个字?",
        "哪个字是{name}的简称?",
        "你知道{name}的简称是什么吗?",
        "说到{name}的简称,它是哪个字?",
        "用一个字代表{name},该用哪个字?",
    ),
    ("{full_name}简称{abbreviation}。", "{full_name}的简称是{abbreviation}。"),
)

RELATIONS = (CAPITAL_OF_PLACE, PLACE_OF_CAPITAL, CONTINENT_OF_COUNTRY, ABBREVIATION_OF_REGION)

LARGEST_OPERAND = 20

OPPOSITES = """
天地 日月 风雨 山水 东西 南北 左右 上下 前后 里外 大小 多少 长短 高低 远近 快慢 轻重 冷热 黑白 明暗
新旧 早晚 老少 男女 古今 真假 虚实 有无 进退 来去 开关 起落 买卖 问答 胜负 得失 生死 强弱 软硬 粗细
宽窄 深浅 厚薄 甘苦 香臭 悲喜 爱恨 春秋 阴阳 先后
"""
COUPLET_QUALITIES = "春秋 朝暮 东西 南北 远近 新旧 高低"
COUPLET_THINGS = "风雨 花月 山水 云雾 楼阁 路桥 村城 草木 江河 松竹"


def sums() -> Iterator[str]:
    """Yield additions and subtractions of small numbers with results of 0 or more: `12+7=19`."""
    for first in range(LARGEST_OPERAND + 1):
        for second in range(LARGEST_OPERAND + 1):
            yield f"{first}+{second}={first + second}"
            if second <= first:
                yield f"{first}-{second}={first - second}"


def couplets() -> Iterator[str]:
    """Yield matching characters, `天对地`, and matching pairs of characters, `春风对秋雨`."""
    for first, second in OPPOSITES.split():
        yield f"{first}对{second}"
        yield f"{second}对{first}"
    for quality, other_quality in COUPLET_QUALITIES.split():
        for thing, other_thing in COUPLET_THINGS.split():
            yield f"{quality}{thing}对{other_quality}{other_thing}"
