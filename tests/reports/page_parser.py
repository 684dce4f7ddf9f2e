"""A page as its tags, attributes and text."""

import html.parser


class Page(html.parser.HTMLParser):
    """A page as its tags, attributes and text; checks that tags are closed in order."""

    VOID = ("meta", "br", "hr", "img")

    def __init__(self, path):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]
