"""Templates run where they can read and change nothing, and end: whatever stands in them."""

import pytest

from qlora_chat.chat_templates.renderer import MAX_TEMPLATE, Call, Refusal, Sandbox, TemplateError, TemplateSource

SECONDS = 0.3
"""CPU time of a request: a thousandth of it is enough for a harmless template."""
QUESTION = [{"role": "user", "content": "Hi"}]


def rendered(template: str) -> str | Refusal:
    sandbox = Sandbox(SECONDS)
    try:
        return sandbox.render(TemplateSource(template, "hostile.jinja"), [Call(QUESTION)]).texts[0]
    finally:
        sandbox.close()


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro again() %}{{ again() }}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ 'a' * 10**9 }}",
        "{{ 'a' * 10**11 }}",
        "{{ (10**9) ** (10**9) }}",
        "{{ lipsum(n=10**9) }}",
        "{{ '%2000000000d' % 1 }}",
        "{{ 'a'.ljust(10**11) }}",
        "{% for i in range(99999) %}{{ messages[0].content * 1000 }}{% endfor %}",
    ],
)
def test_a_template_without_end_is_ended(template: str) -> None:
    try:
        result = rendered(template)
    except TemplateError:
        return
    assert isinstance(result, Refusal)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__self__.__init__.__globals__ }}",
        "{{ (messages|attr('__class__')).x }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(content='changed') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    ],
)
def test_a_template_reaches_nothing(template: str) -> None:
    result = rendered(template)
    assert isinstance(result, Refusal) or not any(word in result for word in ("class", "module", "root", "uid"))


def test_the_process_has_no_environment_and_survives_errors() -> None:
    sandbox = Sandbox(SECONDS)
    broken, good = TemplateSource("{% if %}", "broken.jinja"), TemplateSource("{{ messages[0].content }}", "good.jinja")
    try:
        with pytest.raises(TemplateError, match="broken.jinja, line 1"):
            sandbox.render(broken, [Call(QUESTION)])
        assert sandbox.render(good, [Call(QUESTION)]).texts == ("Hi",)
        with pytest.raises(TemplateError):
            sandbox.render(TemplateSource("{{ (10**9) ** (10**9) }}", "big.jinja"), [Call(QUESTION)])
        assert sandbox.render(good, [Call(QUESTION)]).texts == ("Hi",), "a new process takes over"
    finally:
        sandbox.close()


def test_templates_have_the_names_that_transformers_gives_them() -> None:
    assert rendered("{{ {'b': 'ü<', 'a': 1} | tojson }}") == '{"b": "ü<", "a": 1}'
    assert rendered("{{ {'b': [1], 'a': 1} | tojson(indent=1, sort_keys=true) }}") == '{\n "a": 1,\n "b": [\n  1\n ]\n}'
    assert (
        rendered("{{ dict(a=1)['a'] }}{% for i in range(9) %}{% if i > 1 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "101"
    )
    assert str(rendered("{{ strftime_now('%Y') }}")).isdigit()
    assert rendered("{% generation %}x{% endgeneration %}") == "x"
    assert rendered("{{ tools is none }}{{ bos_token is defined }}") == "TrueFalse"
    assert rendered("a\n  {% if true %}\nb\n{% endif %}\n") == "a\nb\n", "blocks take their line with them"


def test_raise_exception_speaks_for_the_template() -> None:
    result = rendered("\n\n{{ raise_exception('Only for robots') }}")
    assert isinstance(result, Refusal)
    assert (result.message, result.line, result.raised) == ("Only for robots", 3, True)


def test_a_huge_template_is_refused() -> None:
    with pytest.raises(TemplateError, match="are allowed"):
        TemplateSource("x" * (MAX_TEMPLATE + 1), "huge.jinja")
