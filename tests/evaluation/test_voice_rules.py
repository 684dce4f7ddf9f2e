"""Answers about voices and sounds against labels, by the rules of Step-SPQA's tasks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.evaluation.tasks.step_spqa import TASK_TYPES
from stepaudio_jax.evaluation.voice_ages import age_names, find_ages
from stepaudio_jax.evaluation.voice_rules import agrees

ANSWERS = [
    ("age", "20-30岁", "", "三十岁左右", True),
    ("age", "20-30岁", "", "青年", True),
    ("age", "20-30岁", "", "中年", False),
    ("age", "40-50岁", "", "四十多岁", True),
    ("age", "40-50岁", "", "中年人", True),
    ("age", "40-50岁", "", "老年", False),
    ("age", "20-30岁", "", "20多岁", True),
    ("age", "20-30岁", "", "不确定", None),
    ("age", "青年 (25-35岁)", "", "三十五岁", True),
    ("age", "青年女性 (20-35岁)", "", "55岁", False),
    ("age", "20-30岁", "", "二十到三十岁之间", True),
    ("age", "20-30岁", "", "In her mid-twenties.", True),
    ("age", "20-30岁", "", "大概25到35岁", True),
    ("age", "20-30岁", "", "小孩", False),
    ("age", "20-30岁", "", "这段录音有30秒，年龄听不出来", None),
    ("age", "20-30岁", "", "大约25左右", True),
    ("age", "10-15岁", "", "十几岁", True),
    ("age", "20-30岁", "", "25 years old", True),
    ("age", "40-50岁", "", "四十到五十岁之间", True),
    ("age", "20-30岁", "", "不是20岁，而是50岁", False),
    ("age", "20-30岁", "", "年轻人", True),
    ("age", "40-50岁", "", "听起来像四十五六岁", True),
    ("age", "20-30岁", "", "这段录音有30秒，说话人大约五十岁", False),
    ("age", "20-30岁", "", "两个人，一个20岁，一个50岁", None),
    ("age", "20-30岁", "", "20-30", True),
    ("gender", "女性", "", "女", True),
    ("gender", "女性", "", "男声", False),
    ("gender", "女性", "", "听起来是位女士", True),
    ("gender", "女性", "", "可能是男的，也可能是女的", None),
    ("gender", "女性", "", "男性或女性", None),
    ("gender", "男性", "", "male", True),
    ("gender", "男性", "", "It is a woman.", False),
    ("gender", "女性", "", "不是男性", None),
    ("gender", "男性", "", "男女都有", None),
    ("gender", "女性", "", "听不出来是男是女", None),
    ("emotions", "高兴", "", "开心", True),
    ("emotions", "愤怒", "", "生气", True),
    ("emotions", "愤怒", "", "悲伤", True),
    ("emotions", "悲伤", "", "平静", False),
    ("emotions", "平静", "", "语气自然", True),
    ("emotions", "惊讶", "", "震惊", True),
    ("emotions", "高兴", "", "兴奋", True),
    ("emotions", "高兴", "", "不高兴", False),
    ("emotions", "平静", "", "高兴", False),
    ("emotions", "愤怒", "", "调侃", True),
    ("emotions", "高兴", "", "调侃", False),
    ("emotions", "惊讶", "", "高兴", False),
    ("emotions", "高兴", "", "惊讶", False),
    ("emotions", "愤怒", "", "没有愤怒", None),
    ("emotions", "高兴", "", "happy", True),
    ("event", " a dog barking.", "听到了狗叫声。", "狗叫声", True),
    ("event", "雨声。", "", "下雨", True),
    ("event", " music.", "我听到了音乐。", "背景音乐", True),
    ("event", "有人在敲门。", "", "敲门声", True),
    ("event", " a dog barking.", "", "猫叫", False),
    ("event", " music.", "", "有人在说话", None),
    ("event", " music.", "", "没有音乐", None),
    ("event", " music.", "", "music", True),
    ("event", "切割金属。", "有人在切割金属。", "切割金属的声音", True),
    ("scene", "厨房", "", "家里的厨房", True),
    ("scene", "公园", "", "户外", False),
    ("scene", "公园", "", "在公园里散步", True),
    ("scene", "室内", "", "屋里", True),
    ("scene", "室内", "", "户外", False),
    ("scene", "地铁站", "", "地铁站", True),
    ("scene", "地铁站", "", "公交车上", False),
    ("scene", "寺庙", "", "寺庙", True),
    ("scene", "寺庙", "", "教堂", None),
    ("vocalsound", "笑声", "", "大笑", True),
    ("vocalsound", "叹气", "", "叹息", True),
    ("vocalsound", "清嗓子", "", "咳嗽", False),
    ("vocalsound", "咳嗽", "", "没有", None),
    ("vocalsound", "咳嗽", "", "咳了几声", True),
    ("voice_styles", "叙述", "", "讲故事", True),
    ("voice_styles", "演讲", "", "朗诵", False),
    ("voice_styles", "聊天", "", "日常对话", True),
    ("voice_styles", "播报", "", "新闻", True),
    ("voice_tone", "明亮清脆", "", "清亮", True),
    ("voice_tone", "低沉", "", "浑厚", True),
    ("voice_tone", "温柔", "", "柔和", True),
    ("voice_tone", "沙哑", "", "明亮", False),
    ("speed", "中速", "", "快", False),
    ("speed", "中速", "", "中快速", True),
    ("speed", "慢速", "", "中速", False),
    ("speed", "慢速", "", "偏慢", True),
    ("speed", "中速，部分语句为强调略快", "", "中速", True),
    ("speed", "中快速", "", "慢", False),
    ("speed", "快速", "", "不快", None),
    ("speed", "中速", "", "不快不慢", True),
    ("speed", "中快速", "", "比较快", True),
    ("speed", "中快速", "", "快", True),
    ("speed", "中速", "", "fast", False),
    ("pitch", "低音", "", "比较低", True),
    ("pitch", "高音", "", "音调偏高", True),
    ("pitch", "中音", "", "高", False),
    ("pitch", "中音", "", "中等音调", True),
    ("rhythm", "平稳", "", "流畅", True),
    ("rhythm", "急促", "", "紧凑", True),
    ("rhythm", "有停顿", "", "流畅", False),
    ("rhythm", "流畅自然", "", "平稳", True),
    ("rhythm", "平稳", "", "有停顿", False),
    ("rhythm", "有停顿", "", "断断续续", True),
    ("rhythm", "平稳", "", "不平稳", False),
]


@pytest.mark.parametrize(("task", "label", "reference", "answer", "agreed"), ANSWERS)
def test_answers_agree_by_the_rule_of_their_task(task, label, reference, answer, agreed):
    assert agrees(task, label, reference, answer) is agreed


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("二十五岁", [(25, 25)]),
        ("四五十岁", [(40, 50)]),
        ("四十五六岁", [(45, 46)]),
        ("七八岁", [(7, 8)]),
        ("十几岁", [(10, 19)]),
        ("三十多岁", [(30, 39)]),
        ("25到35岁之间", [(25, 35)]),
        ("50岁以上", [(50, 70)]),
        ("18岁以下", [(0, 18)]),
        ("in her late thirties", [(37, 39)]),
        ("mid-20s", [(24, 26)]),
        ("35 years old", [(35, 35)]),
        ("between 20 and 30 years old", [(20, 30)]),
        ("不是20岁，是40岁", [(40, 40)]),
        ("录音长30秒", []),
        ("300岁", []),
    ],
)
def test_ages_are_read_in_digits_and_words(text, ranges):
    assert [(age.low, age.high) for age in find_ages(text, bare=False)] == ranges


def test_names_of_ages_overlap_at_their_borders():
    assert age_names("18岁") == {"teen", "youth"}
    assert age_names("中青年") == {"middle", "youth"}
    assert age_names("中青年，大概50岁") == {"middle"}
    assert age_names("没有说") == set()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([*TASK_TYPES, "another"]), st.text(), st.text())
def test_no_text_is_an_error(task, label, answer):
    assert agrees(task, label, "", answer) in (True, False, None)
