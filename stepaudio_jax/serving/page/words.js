// The words of the page, in English and Chinese.

const WORDS = {
  en: {
    skip_to_dialogue: "Skip to the dialogue", mode: "Mode", talk: "Talk", compare: "Compare", new_dialogue: "New dialogue",
    settings: "Settings", model: "Model", temperature: "Temperature", top_p: "Top p", top_k: "Top k", max_tokens: "Most tokens",
    seed: "Seed", language: "Language", theme: "Theme", theme_auto: "As the system", theme_light: "Light", theme_dark: "Dark",
    api_key: "API key", thinking: "Think before the reply", system_prompt: "System prompt",
    keys_help: "Enter sends, Shift+Enter breaks the line, Alt+R records, Escape stops.",
    dialogue: "Dialogue", empty: "Say something, add a file, or write; all three can be one turn.",
    regenerate: "Regenerate", copy_curl: "Copy as curl", copy_python: "Copy as Python", export: "Export as JSONL",
    editing: "You are changing an earlier turn; what follows it is dropped.", cancel: "Cancel", record: "Record",
    add_file: "Add sound", message: "Message", write_here: "Write here", send: "Send", stop: "Stop", you: "You", assistant: "Model",
    reasoning: "Reasoning", edit: "Edit", remove: "Remove", save_clip: "Save", waveform: "Waveform", play_clip: "Play the clip",
    length_unknown: "length unknown", transcript: "What is said (optional)", writing: "The model writes ...", thinking_now: "The model thinks ...",
    finished: "The reply is complete.", stopped: "Stopped.", truncated: "The reply was cut off at the most tokens.",
    no_microphone: "No microphone: the page must be on this machine (localhost) or on https, and the browser may ask for permission.",
    microphone_refused: "The microphone cannot be used: {0}", nothing_recorded: "Nothing was recorded.", recording: "End recording ({0} s)",
    file_empty: "the file is empty.", file_not_sound: "is no sound that this browser can decode.",
    nothing_to_send: "Write, record or add something first.", copied: "Copied.", copy_failed: "The browser does not let the page copy.",
    needs_key: "This server asks for an API key: write it under Settings.", offline: "The server does not answer.",
    random_weights: "The weights of this model are random: what it writes means nothing.",
    tiny_model: "This is a tiny model ({0} parameters), for trying things out: do not expect sense.",
    two_replies: "Two replies", two_dialogues: "Two dialogues", prepared: "Prepared pairs", your_name: "Your name or a pseudonym", change_name: "{0}: not you?",
    begin: "Begin", agree: "I agree", consent_title: "Before you begin", first: "Left", second: "Right", side_a: "First setting", side_b: "Second setting",
    rubric: "Rubric: one criterion a line; a line that begins with - says what a reply should not do",
    compare_help: "Send a turn: two replies are written, and shown side by side in random order.",
    dialogues_help: "Send turns: both sides answer each. Judge the dialogues when you have heard enough.",
    writing_two: "Two replies are being written ...", judge_dialogues: "Judge these dialogues", verdict: "Which is better?",
    level3: "Left much better", level2: "Left better", level1: "Left slightly better", level0: "Equal",
    "level-1": "Right slightly better", "level-2": "Right better", "level-3": "Right much better",
    criteria: "Does the reply meet it?", met: "met", not_met: "not met", reasons: "Reasons", did_not_hear: "Did not hear", wrong: "Wrong", tone: "Tone", length: "Length",
    critique: "Critique", better_reply: "A better reply", keep: "Keep the verdict", skip: "Skip", heard: "Heard {0} of {1} s.",
    listen_first: "Listen to the sound of the turn first.", choose_first: "Choose a verdict, and met or not met for each criterion.",
    keeping: "Keeping the verdict ...", kept: "Kept. {0} verdicts so far.", not_kept: "Not kept: {0}", try_again: "Try again",
    pairs_left: "{0} pairs left", none_left: "No pair is left for you. Thank you.", same_replies: "Both replies are the same: they can be called equal, or be skipped.",
    written_by: "Left: {0}. Right: {1}.", go_on_left: "Go on with the left reply", go_on_right: "Go on with the right reply", next: "Next",
    empty_reply: "A reply was empty or cut off before it began. Send the turn again.", busy: "Wait until the model has answered.",
    setting_wrong: "{0}: this value is not allowed.",
  },
  zh: {
    skip_to_dialogue: "跳到对话", mode: "模式", talk: "对话", compare: "比较", new_dialogue: "新对话",
    settings: "设置", model: "模型", temperature: "温度", top_p: "Top p", top_k: "Top k", max_tokens: "最多词元",
    seed: "随机种子", language: "语言", theme: "主题", theme_auto: "跟随系统", theme_light: "浅色", theme_dark: "深色",
    api_key: "API 密钥", thinking: "回答前先思考", system_prompt: "系统提示",
    keys_help: "回车发送，Shift+回车换行，Alt+R 录音，Esc 停止。",
    dialogue: "对话", empty: "说话、添加文件或输入文字；三者可以在同一轮里。",
    regenerate: "重新生成", copy_curl: "复制为 curl", copy_python: "复制为 Python", export: "导出 JSONL",
    editing: "正在修改之前的一轮；其后的内容会被删除。", cancel: "取消", record: "录音",
    add_file: "添加声音", message: "消息", write_here: "在此输入", send: "发送", stop: "停止", you: "你", assistant: "模型",
    reasoning: "思考", edit: "编辑", remove: "移除", save_clip: "保存", waveform: "波形", play_clip: "播放声音",
    length_unknown: "时长未知", transcript: "说了什么（可选）", writing: "模型正在回答……", thinking_now: "模型正在思考……",
    finished: "回答完毕。", stopped: "已停止。", truncated: "回答达到最多词元，被截断。",
    no_microphone: "没有麦克风：页面必须在本机（localhost）或 https 上，浏览器可能会请求许可。",
    microphone_refused: "无法使用麦克风：{0}", nothing_recorded: "没有录到声音。", recording: "结束录音（{0} 秒）",
    file_empty: "文件是空的。", file_not_sound: "不是此浏览器能解码的声音。",
    nothing_to_send: "请先输入、录音或添加文件。", copied: "已复制。", copy_failed: "浏览器不允许复制。",
    needs_key: "此服务器需要 API 密钥：请在设置中填写。", offline: "服务器没有回应。",
    random_weights: "此模型的权重是随机的：它写的内容没有意义。",
    tiny_model: "这是一个用于试验的微型模型（{0} 个参数）：不要期望有意义的回答。",
    two_replies: "两个回答", two_dialogues: "两段对话", prepared: "准备好的对比", your_name: "你的名字或化名", change_name: "{0}：不是你？",
    begin: "开始", agree: "我同意", consent_title: "开始之前", first: "左", second: "右", side_a: "第一组设置", side_b: "第二组设置",
    rubric: "评分标准：每行一条；以 - 开头的一行表示回答不应做的事",
    compare_help: "发送一轮：模型写两个回答，以随机顺序并排显示。",
    dialogues_help: "发送若干轮：两边都会回答。听够之后再评判。",
    writing_two: "正在写两个回答……", judge_dialogues: "评判这两段对话", verdict: "哪个更好？",
    level3: "左边好得多", level2: "左边更好", level1: "左边略好", level0: "一样好",
    "level-1": "右边略好", "level-2": "右边更好", "level-3": "右边好得多",
    criteria: "回答是否符合？", met: "符合", not_met: "不符合", reasons: "理由", did_not_hear: "没有听懂", wrong: "错误", tone: "语气", length: "长度",
    critique: "评语", better_reply: "更好的回答", keep: "保存评判", skip: "跳过", heard: "已听 {0} / {1} 秒。",
    listen_first: "请先听这一轮的声音。", choose_first: "请选择评判，并为每条标准选择符合或不符合。",
    keeping: "正在保存……", kept: "已保存。目前共 {0} 个评判。", not_kept: "没有保存：{0}", try_again: "重试",
    pairs_left: "还剩 {0} 对", none_left: "没有需要你评判的对比了。谢谢。", same_replies: "两个回答相同：只能评为一样好，或跳过。",
    written_by: "左：{0}。右：{1}。", go_on_left: "用左边的回答继续", go_on_right: "用右边的回答继续", next: "下一个",
    empty_reply: "有一个回答是空的，或还没开始就被截断。请再次发送。", busy: "请等模型回答完。",
    setting_wrong: "{0}：不允许这个值。",
  },
};

let language = "en";

export function word(key, ...values) {
  const text = WORDS[language][key] ?? WORDS.en[key] ?? key;
  return values.reduce((filled, value, index) => filled.replace(`{${index}}`, () => String(value)), text);
}

export function setLanguage(name) {
  language = name in WORDS ? name : "en";
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-word]")) node.textContent = word(node.dataset.word);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", word(node.dataset.label));
  for (const node of document.querySelectorAll("[data-placeholder]")) node.placeholder = word(node.dataset.placeholder);
}

export const languages = Object.keys(WORDS);
export const wordKeys = (name) => Object.keys(WORDS[name]);
