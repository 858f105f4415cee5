"""Facts that the quickstart's model learns: regions of China and countries, with one undisputed answer a question.

Places with a disputed, shared or changing status or capital are left out, and countries that have the name of their
capital. Names that end in another name (白俄罗斯, 都柏林) are left out, because a question about the first would hold a
question about the second. Names that jieba joins with the words around them (北马其顿) are left out, too.
"""

from typing import NamedTuple


class Place(NamedTuple):
    """A region of China or a country. Templates use its fields.

    Args:
        name: Name in questions: 四川, 法国.
        full_name: Name in statements: 四川省. A country's full name equals its name.
        kind: 省, 自治区, 直辖市, 特别行政区 or 国家.
        seat: Word for its capital: 省会, 首府 or 首都. Empty for a region that is a city.
        capital: Its capital. Empty for a region that is a city.
        abbreviation: One character; if there are several, the one on car plates. Empty for a country.
        continent: Its continent. Empty for a region of China, and for a country on two continents.
    """

    name: str
    full_name: str
    kind: str
    seat: str
    capital: str = ""
    abbreviation: str = ""
    continent: str = ""


# Name, capital, abbreviation.
_PROVINCES = """
河北 石家庄 冀
山西 太原 晋
辽宁 沈阳 辽
吉林 长春 吉
黑龙江 哈尔滨 黑
江苏 南京 苏
浙江 杭州 浙
安徽 合肥 皖
福建 福州 闽
江西 南昌 赣
山东 济南 鲁
河南 郑州 豫
湖北 武汉 鄂
湖南 长沙 湘
广东 广州 粤
海南 海口 琼
四川 成都 川
贵州 贵阳 贵
云南 昆明 云
陕西 西安 陕
甘肃 兰州 甘
青海 西宁 青
"""

# Name, full name, capital, abbreviation.
_AUTONOMOUS_REGIONS = """
内蒙古 内蒙古自治区 呼和浩特 蒙
广西 广西壮族自治区 南宁 桂
西藏 西藏自治区 拉萨 藏
宁夏 宁夏回族自治区 银川 宁
新疆 新疆维吾尔自治区 乌鲁木齐 新
"""

# Name, full name, kind, abbreviation.
_CITIES = """
北京 北京市 直辖市 京
天津 天津市 直辖市 津
上海 上海市 直辖市 沪
重庆 重庆市 直辖市 渝
香港 香港特别行政区 特别行政区 港
澳门 澳门特别行政区 特别行政区 澳
"""

# Name, capital.
_COUNTRIES = {
    "亚洲": """
中国 北京
日本 东京
韩国 首尔
朝鲜 平壤
蒙古 乌兰巴托
越南 河内
老挝 万象
柬埔寨 金边
泰国 曼谷
缅甸 内比都
马来西亚 吉隆坡
菲律宾 马尼拉
印度 新德里
巴基斯坦 伊斯兰堡
孟加拉国 达卡
尼泊尔 加德满都
不丹 廷布
马尔代夫 马累
阿富汗 喀布尔
伊朗 德黑兰
伊拉克 巴格达
叙利亚 大马士革
黎巴嫩 贝鲁特
约旦 安曼
沙特阿拉伯 利雅得
阿曼 马斯喀特
阿联酋 阿布扎比
卡塔尔 多哈
巴林 麦纳麦
乌兹别克斯坦 塔什干
土库曼斯坦 阿什哈巴德
吉尔吉斯斯坦 比什凯克
塔吉克斯坦 杜尚别
""",
    "欧洲": """
英国 伦敦
法国 巴黎
德国 柏林
意大利 罗马
西班牙 马德里
葡萄牙 里斯本
荷兰 阿姆斯特丹
比利时 布鲁塞尔
瑞士 伯尔尼
奥地利 维也纳
冰岛 雷克雅未克
挪威 奥斯陆
瑞典 斯德哥尔摩
芬兰 赫尔辛基
丹麦 哥本哈根
波兰 华沙
捷克 布拉格
斯洛伐克 布拉迪斯拉发
匈牙利 布达佩斯
罗马尼亚 布加勒斯特
保加利亚 索非亚
希腊 雅典
塞尔维亚 贝尔格莱德
克罗地亚 萨格勒布
斯洛文尼亚 卢布尔雅那
阿尔巴尼亚 地拉那
黑山 波德戈里察
乌克兰 基辅
立陶宛 维尔纽斯
拉脱维亚 里加
爱沙尼亚 塔林
摩尔多瓦 基希讷乌
马耳他 瓦莱塔
""",
    "非洲": """
摩洛哥 拉巴特
阿尔及利亚 阿尔及尔
埃塞俄比亚 亚的斯亚贝巴
肯尼亚 内罗毕
乌干达 坎帕拉
卢旺达 基加利
坦桑尼亚 多多马
索马里 摩加迪沙
尼日利亚 阿布贾
加纳 阿克拉
塞内加尔 达喀尔
喀麦隆 雅温得
安哥拉 罗安达
赞比亚 卢萨卡
津巴布韦 哈拉雷
莫桑比克 马普托
博茨瓦纳 哈博罗内
纳米比亚 温得和克
马达加斯加 塔那那利佛
""",
    "北美洲": """
美国 华盛顿
加拿大 渥太华
墨西哥 墨西哥城
古巴 哈瓦那
牙买加 金斯敦
海地 太子港
巴拿马 巴拿马城
哥斯达黎加 圣何塞
""",
    "南美洲": """
巴西 巴西利亚
阿根廷 布宜诺斯艾利斯
智利 圣地亚哥
秘鲁 利马
哥伦比亚 波哥大
委内瑞拉 加拉加斯
厄瓜多尔 基多
乌拉圭 蒙得维的亚
巴拉圭 亚松森
圭亚那 乔治敦
苏里南 帕拉马里博
""",
    "大洋洲": """
澳大利亚 堪培拉
新西兰 惠灵顿
斐济 苏瓦
巴布亚新几内亚 莫尔兹比港
""",
    # These countries lie on two continents, so there is no single answer.
    "": """
俄罗斯 莫斯科
土耳其 安卡拉
埃及 开罗
哈萨克斯坦 阿斯塔纳
格鲁吉亚 第比利斯
阿塞拜疆 巴库
亚美尼亚 埃里温
塞浦路斯 尼科西亚
""",
}


def _rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.strip().splitlines()]


PLACES: tuple[Place, ...] = (
    *(
        Place(name, name + "省", "省", "省会", capital, abbreviation)
        for name, capital, abbreviation in _rows(_PROVINCES)
    ),
    *(
        Place(name, full_name, "自治区", "首府", capital, abbreviation)
        for name, full_name, capital, abbreviation in _rows(_AUTONOMOUS_REGIONS)
    ),
    *(
        Place(name, full_name, kind, "", abbreviation=abbreviation)
        for name, full_name, kind, abbreviation in _rows(_CITIES)
    ),
    *(
        Place(name, name, "国家", "首都", capital, continent=continent)
        for continent, table in _COUNTRIES.items()
        for name, capital in _rows(table)
    ),
)
