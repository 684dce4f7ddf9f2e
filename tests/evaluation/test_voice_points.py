"""Descriptions of voices against the points of a Step-DU reference."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.evaluation.voice_points import parse_points, score_points
from stepaudio_jax.evaluation.voice_terms import find_terms, read_terms
from tests.evaluation.verdicts import json_lines

ANSWERS = [
    ("中速", "适中", 1),
    ("慢速", "偏慢", 1),
    ("慢速", "比较慢", 1),
    ("快速 ", "语速偏快", 1),
    ("平稳", "节奏平稳", 1),
    ("急促", "比较急促", 1),
    ("急促", "平稳", 0),
    ("低音", "音调偏低", 1),
    ("低音", "高音", 0),
    ("中音", "中等", 1),
    ("高音", "音调很高", 1),
    ("高音", "低沉", 0),
    ("清澈透亮型", "清澈", 1),
    ("清澈透亮型", "声音清脆明亮", 1),
    ("浑厚低沉型", "低沉浑厚", 1),
    ("温暖治愈型", "温暖", 1),
    ("活泼灵动型", "活泼可爱", 1),
    ("空灵仙音型", "空灵", 1),
    ("威严庄重型", "庄重威严", 1),
    ("威严庄重型", "温柔", 0),
    ("清嗓子：喉咙", "清了清喉咙", 1),
    ("清嗓子：x", "咳嗽", 0),
    ("吸鼻子 / 擤鼻涕：x", "擤鼻涕", 1),
    ("吹口哨：x", "口哨声", 1),
    ("打呼噜 / 鼾声：x", "打鼾", 1),
    ("喘气 / 喘息：x", "气喘吁吁", 1),
    ("叹气 / 叹息：x", "叹了口气", 1),
    ("笑声-轻笑", "轻笑", 1),
    ("笑声-轻笑", "大笑", 0.5),
    ("笑声-轻笑", "哭声", 0),
    ("哭声-大哭", "嚎啕大哭", 1),
    ("哭声-大哭", "抽泣", 0.5),
    ("演讲", "演说", 1),
    ("解说", "讲解", 1),
    ("朗诵", "朗读", 1),
    ("新闻播报", "播音腔", 1),
    ("客服", "客户服务", 1),
    ("教学", "老师讲课", 1),
    ("表演/配音", "配音", 1),
    ("指令", "命令", 1),
    ("叙事", "讲故事", 1),
    ("叙事", "叙述", 1),
    ("积极愉快", "开心", 1),
    ("消极痛苦", "难过", 1),
    ("愤怒生气", "生气", 1),
    ("恐惧焦虑", "害怕", 1),
    ("厌恶", "反感", 1),
    ("焦虑", "紧张不安", 1),
    ("中年；女", "中年妇女", 1),
    ("老年；男", "老爷爷", 1),
    ("老年；女", "老太太", 1),
    ("少年；男", "十几岁的男孩", 1),
    ("青年；女", "二十多岁的年轻女性", 1),
    ("青年；女", "一位女士，大约25岁", 1),
    ("中年；男", "男性，四十五岁左右", 1),
    ("老年；男", "男，70岁", 1),
    ("儿童；男", "七八岁的小男孩", 1),
    ("青年；男", "男性，年龄在50岁左右", 0.5),
    ("青年；男", "女性，50岁", 0),
    ("中年；女", "听起来像是一位中年男性", 0.5),
    ("少年；女", "少女", 0.5),
    ("咳嗽 / 咳痰声：x", "没有咳嗽，只有说话声", None),
    ("惊讶诧异", "平静", 0),
    ("对话/谈话", "日常聊天", 1),
    ("中速", "语速中等，情绪平稳", 1),
    ("快速 ", "快", 1),
    ("快速 ", "不慢，挺快的", 1),
    ("低音", "不是高音，是低音", 1),
    ("打喷嚏：x", "他打了一个喷嚏", 1),
    ("慢速", "说得很慢，每个字都很清楚", 1),
    ("平稳", "节奏缓慢平稳", 1),
    ("冷嘲热讽/阴阳怪气", "阴阳怪气", 1),
    ("羞耻", "羞愧", 1),
    ("笑声-大笑", "哈哈大笑", 1),
    ("哭声-呜咽/压抑哭泣", "低声的呜咽", 1),
    ("呻吟/吸气：x", "倒吸一口凉气", 1),
    ("青年；男", "青年或中年男性", 0.5),
    ("打呼噜 / 鼾声：x", "呼吸声", None),
    ("中速", "无法判断", None),
    ("青年；男", "I think it is a young man in his twenties.", 1),
    ("咳嗽 / 咳痰声：x", "The speaker is coughing.", 1),
    ("快速 ", "The speech rate is fast.", 1),
    ("低音", "low-pitched", 1),
    ("活泼灵动型", "甜美", 0),
    ("新闻播报", "演讲", 0),
    ("中速", "一般来说语速较快", 0),
]


@pytest.mark.parametrize(("reference", "answer", "score"), ANSWERS)
def test_points_are_met_half_met_or_not(reference, answer, score):
    scored = score_points(parse_points(reference), answer)
    assert (None if scored is None else scored[0]) == score


def test_the_grammar_of_references():
    assert parse_points("青年；男") == [("青年",), ("男",)]
    assert parse_points("咳嗽 / 咳痰声：呼吸道；受阻/时") == [("咳嗽", "咳痰声")]
    assert parse_points("哭声-呜咽/压抑哭泣") == [("哭声-呜咽", "压抑哭泣")]
    assert parse_points("快速 ") == [("快速",)]
    assert parse_points("a; b: c; d") == [("a",), ("b",)]
    assert parse_points(" ；/ ") == []


def test_each_reference_is_met_by_its_own_words(shared_benchmarks):
    rows = json_lines(shared_benchmarks / "StepDU" / "metadata.jsonl")
    references = [row["recording_requirement_or_qa_category"] for row in rows]
    assert len(references) == 87
    for reference in references:
        points = parse_points(reference)
        for place in (0, -1):
            answer = "，".join(point[place] for point in points)
            assert score_points(points, answer)[0] == 1, reference
        if len(points) == 2:
            assert score_points(points, points[1][0])[0] == 0.5


def test_a_label_of_no_known_kind_is_found_by_its_words():
    points = parse_points("齿音/咬舌")
    assert score_points(points, "有明显的齿音") == (1.0, "齿音")
    assert score_points(points, "没有齿音") is None


def test_words_stand_for_what_their_file_says():
    for dimension, concepts in read_terms().items():
        for concept, words in concepts.items():
            for word in words:
                found = find_terms(word.replace("*", ""), dimension)
                named = {name for mention in found for name in mention.concepts}
                assert (concept in named) == (concept != "-"), (dimension, word)


@settings(max_examples=60, deadline=None)
@given(st.text() | st.text(alphabet="不是没有男女快慢高低或者中；/：，。笑哭声"))
def test_no_text_is_an_error(text):
    scored = score_points(parse_points("青年；男/快速"), text)
    assert scored is None or scored[0] in (0, 0.5, 1)
    score_points(parse_points(text), text)
