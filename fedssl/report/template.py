"""The HTML of a page, for jinja2.

It is Python and no HTML file because Flower's app bundles leave out files of other kinds.
"""

HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<link rel="icon" href="data:,">
<style>
:root { {{ light }} }
@media screen and (prefers-color-scheme: dark) { :root { {{ dark }} } }
{{ css }}
</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<p class="subtitle">{{ subtitle }}</p>
<p class="summary">{{ summary }}</p>
{% if facts %}
<dl class="facts">
{% for fact in facts %}
<div class="fact"><dt>{{ fact.label }}</dt><dd>{{ fact.value }}<small>{{ fact.note }}</small></dd></div>
{% endfor %}
</dl>
{% endif %}
<nav aria-label="Sections">
{% for section in sections %}<a href="#{{ section.anchor }}">{{ section.title }}</a>
{% endfor %}
</nav>
</header>
<main>
{% for section in sections %}
<section id="{{ section.anchor }}">
<h2>{{ section.title }}</h2>
{% if section.intro %}<p class="intro">{{ section.intro }}</p>{% endif %}
<div class="blocks">
{% for block in section.blocks %}{{ block.html(section.anchor ~ loop.index) }}
{% endfor %}
</div>
</section>
{% endfor %}
</main>
<footer>{{ footer }}</footer>
</body>
</html>
"""

PICTURE = """<figure>
<h3>{{ title }}</h3>
{{ svg }}
<figcaption>{{ caption }}</figcaption>
</figure>"""

TABLE = """<figure class="wide">
{% if title %}<h3>{{ title }}</h3>{% endif %}
<div class="scroll"><table>
<thead><tr>
{% for cell in header %}<th scope="col"{% if loop.index <= text_columns %} class="text"{% endif %}>{{ cell }}</th>
{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}<tr>
{% for cell in row %}<td{% if loop.index <= text_columns %} class="text"{% endif %}>{{ cell }}</td>
{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
{% if caption %}<figcaption>{{ caption }}</figcaption>{% endif %}
</figure>"""

LISTING = """<details class="wide"><summary>{{ title }}</summary><pre>{{ text }}</pre></details>"""
