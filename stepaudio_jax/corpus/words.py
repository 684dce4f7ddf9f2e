"""The words that the corpus says: a closed vocabulary, which the CTC head of a training run needs."""

KEYWORDS = (
    "river", "garden", "window", "music", "paper", "summer", "doctor", "mountain", "kitchen", "money",
    "station", "letter", "dinner", "pocket", "bottle", "forest", "village", "coffee", "teacher", "question",
)  # fmt: skip
ANIMALS = ("tiger", "monkey", "rabbit", "lion", "dolphin", "zebra", "penguin", "camel")
COLOURS = ("red", "green", "yellow", "purple", "white", "black", "golden", "silver")
DIGITS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAMES = ("anna", "peter", "maria", "oscar", "laura", "david", "sophie", "robert")
ADJECTIVES = ("cold", "warm", "big", "small", "new", "quiet", "lovely", "heavy", "dirty", "strange")
SUBJECTS = ("i", "you", "we", "they", "she", "he")
VERBS = ("saw", "found", "liked", "lost", "wanted", "needed", "took", "left")
PLACES = ("here", "there", "outside", "at home", "in town")
TIMES = ("today", "now", "again", "this time", "at night")
"""What a template's slots are filled with. A filling may be several words."""

# Mandarin words are separated as they are spoken; the characters of one word are not.
MANDARIN_SUBJECTS = ("我", "你", "他们", "我们", "妈妈", "老师", "朋友", "学生")
MANDARIN_FOOD = ("苹果", "米饭", "面条", "牛奶", "咖啡", "红茶")
MANDARIN_THINGS = ("电影", "音乐", "飞机", "小猫", "花园", "月亮")
MANDARIN_PLACES = ("学校", "北京", "公园", "家里")
MANDARIN_ADJECTIVES = ("很好", "很冷", "很大", "漂亮")
MANDARIN_TIMES = ("今天", "明天", "昨天", "现在")
