"""The text form of attacks and defences."""

import pytest

from jaxpurify.evaluate.specs import Spec, canonical, parse_spec, parse_specs


def test_names_options_and_chains():
    assert parse_specs("langevin(steps=150)|diffusion(timestep=75, sampler='ddim')") == [
        Spec("langevin", (), {"steps": 150}),
        Spec("diffusion", (), {"timestep": 75, "sampler": "ddim"}),
    ]
    assert parse_spec(" identity ") == parse_spec("identity()") == Spec("identity", (), {})
    assert parse_spec("puregen-ebm") == Spec("puregen-ebm", (), {})
    assert parse_spec("jpeg(50)") == Spec("jpeg", (50,), {})


def test_literals_and_quotients():
    options = parse_spec("narcissus(epsilon=16/255, shift=-8/255, pair=(1, 2), on=True, off=None, rate=1e-3)").options
    assert options == {"epsilon": 16 / 255, "shift": -8 / 255, "pair": (1, 2), "on": True, "off": None, "rate": 1e-3}


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("badnets( count = 10 ,target=3)", "badnets(count=10, target=3)"),
        (" identity() | jpeg( 50)", "identity|jpeg(50)"),
        (
            'narcissus(epsilon=16 / 255, shift=-8/255, choice="random")',
            "narcissus(epsilon=16/255, shift=-8/255, choice='random')",
        ),
        ("repeat('langevin(steps=10)|diffusion(timestep=50, steps=2)', 5)",) * 2,
        ("langevin(steps=38, step_size=0.008839, temperature=5.067e-05)",) * 2,
        ("sig(epsilon = 8 / (255/2), frequency=1/2/3)", "sig(epsilon=8/(255/2), frequency=1/2/3)"),
        ("puregen-ebm",) * 2,
    ],
)
def test_one_spelling(text, spelled):
    assert canonical(text) == canonical(spelled) == spelled
    assert parse_specs(text) == parse_specs(spelled)


def test_bars_inside_of_brackets_and_quotes_do_not_split():
    parts = parse_specs("repeat('langevin(steps=1)|jpeg', 5)|average(\"a|b\", count=2)|c")
    assert [part.name for part in parts] == ["repeat", "average", "c"]
    assert parts[0].positional == ("langevin(steps=1)|jpeg", 5)
    assert parts[1] == Spec("average", ("a|b",), {"count": 2})


@pytest.mark.parametrize(
    "text",
    [
        "", "|", "a|", "|a", "a||b", "Langevin", "langevin(", "langevin)", "langevin(steps=)", "langevin(steps=n)",
        "a(1)(2)", "a(1) + (2)", "a(1).b(2)", "a(1)[0]", "a(*[1])", "a(**{'b': 1})", "a(b=1, b=2)", "a(b=1/0)",
        "a(b=__import__('os'))", "a(b=1+1)", "a(b='x'/2)", "a(b={[]: 1})", "a(b=\0)", "a(b=lambda: 1)", "a b", "a=1",
    ],
)  # fmt: skip
def test_everything_else_is_one_clear_error(text):
    with pytest.raises(
        ValueError, match=r"is not of the form|not Python literals|is not a literal|is given once"
    ) as error:
        parse_specs(text)
    assert "\n" not in str(error.value)
