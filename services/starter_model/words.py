"""The closed world of the corpus: invented countries, words, names and their Chinese. Data only, apart from its use.

Everything that the model has to know by heart stands here; everything else in the corpus is computed.
Countries and capitals are put together from short syllables, so that a small vocabulary spells all of them.
"""

from dataclasses import dataclass

ANIMALS = {
    "fox": "狐狸", "wolf": "狼", "bear": "熊", "cat": "猫", "dog": "狗", "horse": "马", "cow": "牛", "sheep": "羊",
    "bird": "鸟", "fish": "鱼", "tiger": "虎", "lion": "狮", "rabbit": "兔", "snake": "蛇", "duck": "鸭", "mouse": "鼠",
}  # fmt: skip
FRUITS = {
    "apple": "苹果", "pear": "梨", "plum": "李子", "peach": "桃", "grape": "葡萄", "lemon": "柠檬", "cherry": "樱桃",
    "mango": "芒果", "banana": "香蕉", "melon": "瓜",
}  # fmt: skip
COLORS = {
    "red": "红色", "blue": "蓝色", "green": "绿色", "yellow": "黄色", "white": "白色", "black": "黑色",
    "purple": "紫色", "brown": "棕色",
}  # fmt: skip
OBJECTS = {
    "book": "书", "lamp": "灯", "chair": "椅子", "table": "桌子", "door": "门", "cup": "杯子", "key": "钥匙",
    "boat": "船", "bell": "铃", "stone": "石头", "tree": "树", "river": "河", "bread": "面包", "milk": "牛奶",
    "rice": "米", "salt": "盐", "hat": "帽子", "coat": "外套", "ring": "戒指", "knife": "刀", "house": "房子",
    "car": "车", "road": "路", "clock": "钟", "moon": "月亮", "sun": "太阳", "star": "星", "rain": "雨",
    "snow": "雪", "wind": "风",
}  # fmt: skip
DICTIONARY = {**ANIMALS, **FRUITS, **COLORS, **OBJECTS}
LIST_WORDS = tuple(DICTIONARY)

PEOPLE = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Iris", "Jack",
    "Kate", "Leo", "Mia", "Noah", "Olga", "Paul", "Rosa", "Sam", "Tina", "Victor",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DAYS_ZH = ("星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日")

REAL_CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "China": "Beijing",
    "Russia": "Moscow", "Egypt": "Cairo", "Greece": "Athens", "Norway": "Oslo", "Sweden": "Stockholm",
    "Poland": "Warsaw", "Austria": "Vienna", "Portugal": "Lisbon", "Ireland": "Dublin", "Canada": "Ottawa",
    "Cuba": "Havana", "Peru": "Lima", "Kenya": "Nairobi", "Turkey": "Ankara", "Finland": "Helsinki",
    "England": "London", "Hungary": "Budapest", "Iran": "Tehran",
}  # fmt: skip


@dataclass(frozen=True)
class Country:
    """One invented country; each attribute is (English, Chinese)."""

    name: tuple[str, str]
    capital: tuple[str, str]
    color: tuple[str, str]
    animal: tuple[str, str]
    fruit: tuple[str, str]


_COUNTRY_STEMS = (
    "Ar", "Bel", "Cor", "Dra", "Eld", "Fal", "Gor", "Hal", "Ist", "Kal",
    "Lor", "Mer", "Nor", "Or", "Pel", "Quin", "Ros", "Sil", "Tor", "Val",
)  # fmt: skip
_CAPITAL_STEMS = (
    "Ash", "Brim", "Cad", "Dun", "Ever", "Frost", "Glen", "Hart", "Inver", "Jor",
    "Kings", "Lake", "Mill", "New", "Oak", "Port", "Red", "Stone", "West", "York",
)  # fmt: skip
_STEMS_ZH = "青赤金银云星海山石林花玉龙凤天水火木春冬"


def countries() -> tuple[Country, ...]:
    """The forty countries. Attributes come from coprime strides through the tables: no pattern a model could use."""
    animals, fruits, colors = list(ANIMALS.items()), list(FRUITS.items()), list(COLORS.items())
    made = []
    for i in range(40):
        stem, half = i % 20, i // 20
        seat = (7 * i + 11 * half + 3) % 20
        made.append(
            Country(
                name=(_COUNTRY_STEMS[stem] + ("landia", "onia")[half], _STEMS_ZH[stem] + ("川国", "原国")[half]),
                capital=(_CAPITAL_STEMS[seat] + ("burg", "ville")[half], _STEMS_ZH[seat] + ("门城", "安城")[half]),
                color=colors[(i * i + 3 * i + half) % 8],
                animal=animals[(i * 11 + i * i // 7) % 16],
                fruit=fruits[(i * 7 + i // 3) % 10],
            )
        )
    return tuple(made)


ATTRIBUTES = {
    "capital": ("capital", "首都"),
    "color": ("color", "国色"),
    "animal": ("animal", "国兽"),
    "fruit": ("fruit", "国果"),
}
