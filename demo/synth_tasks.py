"""Turns about the world: facts, words, sums, instructions, code, stories, advice.

Scope: one function per kind, from random words to question-answer pairs. Knows nothing of people and memory (synth_people.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from synth_words import Turns, Words, in_words, joined, lower_first, upper_first, with_article

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
ONE_WORD = (
    " Answer in one word.",
    " One word only.",
    " Reply with just one word.",
    " Use a single word.",
    " Only the word, please.",
)


def one(words: Words, question: str, answer: str, short: str = "") -> Turns:
    """Ask for the answer, or sometimes for its short form alone."""
    if short and len(short.split()) == 1 and words.chance(0.12):
        return [(question + words.pick(ONE_WORD), upper_first(short) + ("." if words.chance(0.7) else ""))]
    if short and words.chance(0.05):
        return [(question + words.one_of(" In capitals, please.", " Write the answer in capital letters."), short.upper())]
    return [(words.asked(question), answer)]


def fact(words: Words) -> Turns:
    first, second, short, sentence = words.row("facts")
    return one(words, words.one_of(first, second), sentence, short)


def country(words: Words) -> Turns:
    name, capital, continent, language = words.row("countries")
    draw = words.random.random()
    if draw < 0.4:
        question = words.one_of(
            f"What is the capital of {name}?", f"Which city is the capital of {name}?", f"Name the capital of {name}.",
            f"Tell me what the capital of {name} is.", f"What city is {name}'s capital?", f"{upper_first(name)}: what is its capital?",
            f"I want to visit the capital of {name}. Where do I go?", f"Where does the government of {name} sit?",
        )  # fmt: skip
        return one(words, question, f"The capital of {name} is {capital}.", capital)
    if draw < 0.6:
        question = words.one_of(
            f"Which country has {capital} as its capital?", f"{capital} is the capital of which country?", f"What country is {capital} in?",
            f"I am in {capital}. Which country am I in?", f"Whose capital is {capital}?", f"In which country does {capital} lie?",
        )  # fmt: skip
        return one(words, question, f"{capital} is the capital of {name}.", name)
    if draw < 0.8:
        question = words.one_of(
            f"On which continent is {name}?", f"Which continent does {name} belong to?", f"Where in the world is {name}?",
            f"What continent is {name} part of?", f"Which part of the world is {name} in?",
        )  # fmt: skip
        other = words.pick([each for each in ("Europe", "Africa", "Asia", "South America") if each != continent])
        if words.chance(0.3):
            pair = words.random.sample([continent, other], 2)
            question = words.one_of(f"Does {name} lie in {pair[0]} or {pair[1]}?", f"{pair[0]} or {pair[1]}: where is {name}?")
        return one(words, question, f"{upper_first(name)} is in {continent}.", continent)
    question = words.one_of(
        f"Which language is spoken in {name}?", f"What do people speak in {name}?", f"Which language should I learn for {name}?",
        f"What is the language of {name}?",
    )  # fmt: skip
    return one(words, question, f"People in {name} speak {language}.", language)


def animal(words: Words) -> Turns:
    name, sound, young, kind, legs, home, food = words.row("animals")
    a = with_article(name)
    choices = [
        ((f"What sound does {a} make?", f"How does {a} sound?", f"What noise do I hear from {a}?", f"What does {a} do when it is loud?"),
         f"{upper_first(a)} can {sound}.", sound),
        ((f"What is a baby {name} called?", f"What do you call the young of {a}?", f"How is a little {name} called?",
          f"{upper_first(a)} has a baby. What is it called?"), f"A young {name} is called {with_article(young)}.", young),
        ((f"What kind of animal is {a}?", f"Which class of animals does {a} belong to?", f"To which group does the {name} belong?"),
         f"{upper_first(a)} is {with_article(kind)}.", kind),
        ((f"How many legs does {a} have?", f"Count the legs of {a}.", f"What number of legs does {a} have?",
          f"On how many legs does {a} stand?"), f"{upper_first(a)} has {legs} legs.", legs),
        ((f"Where does {a} live?", f"What is the home of {a}?", f"Where would I find {a}?", f"In which place does {a} live?"),
         f"{upper_first(a)} lives in or near {home}.", ""),
        ((f"What does {a} eat?", f"What is the food of {a}?", f"What should I feed {a}?", f"What do {name}s like to eat?"),
         f"{upper_first(a)} eats {food}.", ""),
        ((f"Tell me something about {a}.", f"Tell me about the {name}.", f"What do you know about {a}?", f"Describe {a}."),
         f"{upper_first(a)} is {with_article(kind)}. It has {legs} legs, lives in or near {home}, and eats {food}.", ""),
    ]  # fmt: skip
    questions, answer, short = words.pick(choices)
    if words.chance(0.08):
        other = words.pick([each for each in ("mammal", "bird", "insect", "fish", "reptile") if each != kind])
        pair = words.random.sample([kind, other], 2)
        return one(
            words,
            f"Is {a} {with_article(pair[0])} or {with_article(pair[1])}?",
            f"{upper_first(a)} is {with_article(kind)}.",
            kind,
        )
    return one(words, words.pick(questions), answer, short)


def term(words: Words) -> Turns:
    """A term for its definition, or the other way round."""
    name, definition, clue = words.row("terms")
    bare = name.split(" ", 1)[1] if name.startswith(("a ", "an ", "the ")) else name
    if words.chance(0.55):
        clue = words.one_of(definition, clue)
        if clue.startswith(("what ", "how ")):
            clue = words.one_of("the word for ", "the name of ") + clue
        question = words.one_of(
            f"What is the name of this: {clue}?", f"What do we call this: {clue}?", f"Which word do I look for? It is {clue}.",
            f"Name this: {clue}.", f"I am thinking of {clue}. What is it?", f"What is {clue} called?", f"Guess what I mean: {clue}.",
        )  # fmt: skip
        return one(words, question, words.one_of(f"That is {name}.", f"It is called {name}.", f"You mean {name}."), bare)
    is_are = "are" if definition.startswith(("the organs", "two long")) or bare in ("scissors", "lungs") else "is"
    question = words.one_of(
        f"What {is_are} {name}?", f"Explain what {name} {is_are}.", f"What does the word {bare} mean?", f"Define {bare}.",
        f"Describe {name} in one sentence.", f"Tell me what {name} {is_are}.", f"Write one sentence about {name}.",
        f"Say in a few words what {name} {is_are}.", f"My child wants to know what {name} {is_are}. What can I say?",
    )  # fmt: skip
    return [(words.asked(question), f"{upper_first(name)} {is_are} {definition}.")]


def person(words: Words) -> Turns:
    name, deed, question = words.row("people")
    if words.chance(0.7):
        reworded = words.one_of(
            question,
            f"Which person {deed}?",
            f"Name the person who {deed}.",
            f"Tell me who {deed}.",
            f"Someone {deed}. Who was it?",
        )
        return [(words.asked(reworded), f"{upper_first(name)} {deed}.")]
    reworded = words.one_of(
        f"Who was {name}?", f"What is {name} known for?", f"Tell me about {name}.", f"Why is {name} famous?"
    )
    return [(words.asked(reworded), f"{upper_first(name)} {deed}.")]


def word(words: Words) -> Turns:
    """Opposites, plurals, past forms and colors of things."""
    draw = words.random.random()
    if draw < 0.5:
        left, right = words.row("opposites")
        if words.chance(0.4) and sum(right == each[1] for each in words.tables["opposites"]) == 1:
            left, right = right, left
        question = words.one_of(
            f"What is the opposite of {left}?", f"Tell me the opposite of {left}.", f"Give me an antonym of {left}.",
            f'Which word is the opposite of "{left}"?', f"If it is not {left}, it is what?", f"What is the contrary of {left}?",
        )  # fmt: skip
        return one(words, question, f'The opposite of "{left}" is "{right}".', right)
    if draw < 0.65:
        single, plural = words.row("plurals")
        question = words.one_of(
            f"What is the plural of {single}?",
            f"One {single}, two what?",
            f"How do I write more than one {single}?",
            f"Plural of {single}?",
        )
        return one(words, question, f'The plural of "{single}" is "{plural}".', plural)
    if draw < 0.75:
        verb, past = words.row("pasts")
        question = words.one_of(
            f"What is the past tense of {verb}?", f"Put the verb {verb} into the past.", f"Past form of {verb}?"
        )
        return one(words, question, f'The past tense of "{verb}" is "{past}".', past)
    thing, color = words.row("colors")
    verb = "are" if thing == "most frogs" else "is"
    question = words.one_of(
        f"What color {verb} {thing}?", f"Which colour {verb} {thing}?", f"Tell me the color of {thing}.", f"Which colour has {thing}?",
        f"What is the colour of {thing}?",
    )  # fmt: skip
    return one(words, question, f"{upper_first(thing)} {verb} {color}.", color)


def calendar(words: Words) -> Turns:
    names, unit = (words.one_of("d", "m") == "d" and (DAYS, "day")) or (MONTHS, "month")
    index = words.random.randrange(len(names))
    name, after, before = names[index], names[(index + 1) % len(names)], names[index - 1]
    if words.chance(0.15):
        return [(words.asked(f"Name all the {unit}s in order."), joined(names) + ".")]
    if words.chance(0.5):
        question = words.one_of(
            f"What {unit} comes after {name}?", f"Which {unit} is next after {name}?", f"{name} is over. What {unit} begins?",
            f"What is the {unit} after {name}?",
        )  # fmt: skip
        return one(words, question, f"{after} comes after {name}.", after)
    question = words.one_of(
        f"What {unit} comes before {name}?", f"Which {unit} is just before {name}?", f"What is the {unit} before {name}?",
        f"Which {unit} ends when {name} begins?",
    )  # fmt: skip
    return one(words, question, f"{before} comes before {name}.", before)


# --- numbers ----------------------------------------------------------------------------------------------------------


def sum_(words: Words) -> Turns:
    """A sum with two digits at most in each number, bare or told as a story."""
    maker = words.random.choices((_plus, _minus, _times, _divided, _told, _small), (26, 22, 16, 10, 20, 8))[0]
    question, answer = maker(words)
    if words.chance(0.06):
        return [
            (question + words.one_of(" Only the number.", " Just the number, please."), answer.split()[-1].rstrip(".").strip())
        ]
    return [(words.asked(question), answer)]


def _two(words: Words, most: int = 99) -> tuple[int, int]:
    draw = words.random.randint
    return (draw(1, most), draw(1, most)) if words.chance(0.6) else (draw(1, 20), draw(1, 20))


def added(a: int, b: int) -> str:
    """The sum in words; two numbers of two digits are added by tens and ones."""
    if a < 10 or b < 10 or a % 10 == 0 or b % 10 == 0:
        return f"{a} plus {b} is {a + b}."
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    return f"{a // 10 * 10} + {b // 10 * 10} = {tens} and {a % 10} + {b % 10} = {ones}, so {a} plus {b} is {a + b}."


def subtracted(a: int, b: int) -> str:
    """The difference in words; a number of two digits is taken away in two steps."""
    if b < 10 or b % 10 == 0:
        return f"{a} minus {b} is {a - b}."
    tens = b // 10 * 10
    return f"{a} - {tens} = {a - tens} and {a - tens} - {b % 10} = {a - b}, so {a} minus {b} is {a - b}."


def multiplied(a: int, b: int) -> str:
    """The product in words; a first number of two digits is taken apart."""
    if a < 11 or a % 10 == 0:
        return f"{a} times {b} is {a * b}."
    tens = a // 10 * 10
    return f"{tens} x {b} = {tens * b} and {a % 10} x {b} = {a % 10 * b}, so {a} times {b} is {a * b}."


def _plus(words: Words) -> tuple[str, str]:
    a, b = _two(words)
    x, y = words.number_text(a), words.number_text(b)
    question = words.one_of(
        f"What is {a} + {b}?", f"What is {x} plus {y}?", f"Add {x} and {y}.", f"{a}+{b}", f"{a} + {b} = ?", f"How much is {x} plus {y}?",
        f"What do {x} and {y} make?", f"Calculate {a} + {b}.", f"What is the sum of {x} and {y}?", f"Can you add {x} to {y}?",
        f"How much are {x} and {y} together?", f"Put {x} and {y} together: how much is it?", f"{upper_first(x)} and {y} is how much?",
        f"What is the total of {x} and {y}?", f"Compute {x} plus {y}.",
    )  # fmt: skip
    return question, added(b, a) if question.startswith("Can you add") else added(a, b)


def _minus(words: Words) -> tuple[str, str]:
    b, a = sorted(_two(words))
    x, y = words.number_text(a), words.number_text(b)
    question = words.one_of(
        f"What is {a} - {b}?", f"What is {x} minus {y}?", f"Subtract {y} from {x}.", f"{a}-{b}", f"{a} - {b} = ?", f"Take {y} from {x}.",
        f"How much is {x} minus {y}?", f"What is left of {x} without {y}?", f"Calculate {a} - {b}.", f"How much is {x} less {y}?",
        f"What is the difference of {x} and {y}?", f"I take {y} off {x}. What stays?", f"Compute {x} minus {y}.",
    )  # fmt: skip
    return question, subtracted(a, b)


def _times(words: Words) -> tuple[str, str]:
    a, b = words.random.randint(2, 12), words.random.randint(2, 10)
    if words.chance(0.35):
        a, b = words.random.randint(11, 49), words.random.randint(2, 9)
    question = words.one_of(
        f"What is {a} times {b}?", f"What is {a} x {b}?", f"Multiply {a} by {b}.", f"{a} * {b} = ?", f"How much is {a} times {b}?",
        f"{a}x{b}", f"What is the product of {a} and {b}?", f"Calculate {a} times {b}.", f"What does {a} times {b} give?",
        f"What do I get if I multiply {a} by {b}?",
    )  # fmt: skip
    return question, multiplied(a, b)


def _divided(words: Words) -> tuple[str, str]:
    b, result = words.random.randint(2, 10), words.random.randint(2, 12)
    a = b * result
    question = words.one_of(
        f"What is {a} divided by {b}?", f"Divide {a} by {b}.", f"{a} / {b} = ?", f"How much is {a} divided by {b}?", f"{a}:{b}?",
        f"How often does {b} fit into {a}?", f"Split {a} into {b} equal parts. How big is one?", f"What does {a} divided by {b} give?",
    )  # fmt: skip
    return question, f"{a} divided by {b} is {result}."


def _small(words: Words) -> tuple[str, str]:
    n = words.random.randint(1, 49)
    a, b = words.random.sample(range(1, 100), 2)
    big, small = max(a, b), min(a, b)
    three = [words.random.randint(1, 9) for _ in range(3)]
    return words.pick((
        (words.one_of(f"What is double {n}?", f"What is twice {n}?", f"Double the number {n}."), f"2 times {n} is {2 * n}."),
        (words.one_of(f"What is half of {2 * n}?", f"Halve {2 * n}.", f"Half of {2 * n} is what?"), f"{2 * n} divided by 2 is {n}."),
        (words.one_of(f"Which is bigger, {a} or {b}?", f"{a} or {b}: which number is larger?", f"Tell me the larger number: {a}, {b}."),
         words.one_of(f"The larger number is {big}.", f"{small} is smaller, so the larger number is {big}.")),
        (words.one_of(f"Which is smaller, {a} or {b}?", f"{a} or {b}: which number is less?"), f"The smaller number is {small}."),
        (words.one_of(f"What comes after {n}?", f"Which number follows {n}?", f"What is {n} and one more?", f"{n} plus one?"),
         f"The number after {n} is {n + 1}."),
        (words.one_of(f"What comes before {n}?", f"Which number is one less than {n}?"), f"The number before {n} is {n - 1}."),
        (words.one_of(f"Is {n} even or odd?", f"{n}: even or odd?"), f"{n} is {'odd' if n % 2 else 'even'}."),
        (f"{words.one_of('Add', 'Add up', 'What is the sum of')} {joined([str(each) for each in three])}.",
         f"{three[0]} + {three[1]} = {three[0] + three[1]} and {three[0] + three[1]} + {three[2]} = {sum(three)}, "
         f"so the sum is {sum(three)}."),
    ))  # fmt: skip


def _told(words: Words) -> tuple[str, str]:
    who = words.one_of("I", "I", words.name())
    have, has, do = ("have", "had", "do I") if who == "I" else ("has", "had", "does " + who)
    thing = words.one_of(*"apples coins books eggs pens cards balls sweets stamps cups plums shells stickers nuts".split())
    a, b = _two(words, 40)
    big, small = max(a, b), min(a, b)
    few, many = words.random.randint(2, 9), words.random.randint(2, 10)
    place, animals = (
        words.one_of("on a roof", "in a field", "by the pond", "on a wire"),
        words.one_of("birds", "ducks", "geese", "cats"),
    )
    box = words.one_of("bag", "basket", "packet", "row", "shelf", "jar")
    return words.pick((
        (f"{who} {have} {a} {thing} and {words.one_of('get', 'find', 'buy') if who == 'I' else 'gets'} {b} more. "
         f"How many {thing} {words.one_of('is that', 'are there now', do + ' have')}?", added(a, b)),
        (f"{who} {has} {big} {thing} and gave away {small}. How many {thing} are left?", subtracted(big, small)),
        (f"{who} {has} {big} {thing} and lost {small} of them. How many {do} still have?", subtracted(big, small)),
        (f"There are {big} {animals} {place}, and {small} go away. How many stay?", subtracted(big, small)),
        (f"There are {a} {animals} {place}, and {b} more come. How many are there now?", added(a, b)),
        (f"One {box} has {many} {thing}. How many {thing} are in {few} {box}s?".replace("shelfs", "shelves"), multiplied(few, many)),
        (f"{few} {box}s hold {many} {thing} each. How many {thing} is that?".replace("shelfs", "shelves"), multiplied(few, many)),
        (f"{few} friends share {few * many} {thing} equally. How many {thing} does each friend get?",
         f"{few * many} divided by {few} is {many}."),
        (f"{few * many} {thing} go into {few} {box}s, the same number in each. How many are in one?".replace("shelfs", "shelves"),
         f"{few * many} divided by {few} is {many}."),
        (f"Yesterday {who} counted {a} {thing}, and today {b}. How many in total?", added(a, b)),
        (f"A ticket costs {few} dollars. What do {many} tickets cost?", multiplied(many, few)),
        (f"{who} walked {a} miles in the morning and {b} miles later. How many miles altogether?", added(a, b)),
        (f"A book has {big} pages, and {who} read {small}. How many pages remain?", subtracted(big, small)),
    ))  # fmt: skip


def count(words: Words) -> Turns:
    low = words.random.randint(1, 12)
    high = low + words.random.randint(2, 8)
    if words.chance(0.25):
        step = words.pick((2, 5, 10))
        row = [step * each for each in range(low, low + 3)]
        shown = ", ".join(str(each) for each in row)
        question = words.one_of(
            f"Continue: {shown}, ...", f"{shown}: what comes next?", f"Which number follows in this row: {shown}?"
        )
        return [(words.asked(question), f"The next number is {row[-1] + step}.")]
    up = ", ".join(str(each) for each in range(low, high + 1)) + "."
    if words.chance(0.25):
        down = ", ".join(str(each) for each in range(high, low - 1, -1)) + "."
        return [(words.one_of(f"Count down from {high} to {low}.", f"Count backwards: {high} to {low}."), down)]
    x, y = words.number_text(low), words.number_text(high)
    question = words.one_of(
        f"Count from {x} to {y}.", f"Please count: {x} to {y}.", f"Can you count from {x} to {y}?", f"Write {x} to {y}."
    )
    return [(question, up)]


# --- instructions -----------------------------------------------------------------------------------------------------


def instruction(words: Words) -> Turns:
    makers = (_list, _yes_no, _capitals, _repeat, _sort, _spell, _short_form, _choose, _keep_style, _complete)
    return words.random.choices(makers, (24, 16, 12, 8, 8, 6, 8, 8, 12, 6))[0](words)


def _list(words: Words) -> Turns:
    name, single, members = words.row("lists")
    size = words.random.randint(2, 5)
    items = words.random.sample(members.split(", "), size)
    number = words.one_of(in_words(size), in_words(size), str(size))
    if words.chance(0.4):
        question = words.one_of(
            f"Make a list with bullets: {number} {name}.", f"Write {number} {name}, one in each line.", f"{number} {name} as a list, please.",
            f"Give me a bulleted list of {number} {name}.", f"List {number} {name} with dashes.",
        )  # fmt: skip
        return [(upper_first(question), "\n".join(f"- {upper_first(each)}" for each in items))]
    if words.chance(0.15):
        question = words.one_of(f"Write a numbered list of {number} {name}.", f"Number {number} {name} from 1 to {size}.")
        return [(question, "\n".join(f"{place}. {upper_first(each)}" for place, each in enumerate(items, start=1)))]
    question = words.one_of(
        f"Name {number} {name}.", f"Give me {number} {name}.", f"Tell me {number} {name}.", f"Can you name {number} {name}?",
        f"I need {number} {name}.", f"{upper_first(number)} {name}, please.", f"Write down {number} {name}, with commas.",
        f"Only {number} {name}, nothing more.", f"What are {number} {name}?", f"List {number} {name}, nothing else.",
        f"Please give exactly {number} {name}.", f"No sentence, just {number} {name}.",
    )  # fmt: skip
    if words.chance(0.1):
        return [(f"Name {words.one_of('one', 'a')} {single}.", upper_first(items[0]) + ".")]
    return [(question, upper_first(", ".join(items) if words.chance(0.75) else joined(items)) + ".")]


YES_NO = (
    " Yes or no?", " Answer with yes or no.", " Say yes or no only.", " Only yes or no.", " Just say yes or no.", " (yes/no)",
    " Yes or no, please.",
)  # fmt: skip


def _yes_no(words: Words) -> Turns:
    question, holds = words.pick((_is_color, _is_capital, _is_class, _is_bigger, _is_opposite, _is_common))(words)
    if words.chance(0.25):
        question = words.one_of("Yes or no: ", "Say yes or no: ", "With yes or no only: ") + lower_first(question)
        return [(question, "Yes." if holds else "No.")]
    return [(question + words.pick(YES_NO), "Yes." if holds else "No.")]


def _is_color(words: Words) -> tuple[str, bool]:
    thing, color = words.row("colors")
    holds = words.chance(0.5)
    shown = color if holds else words.pick([each for each in ("red", "blue", "green", "black") if each != color])
    return f"{'Are' if thing == 'most frogs' else 'Is'} {thing} {shown}?", holds


def _is_capital(words: Words) -> tuple[str, bool]:
    name, capital, continent, _ = words.row("countries")
    other = words.pick([each for each in words.tables["countries"] if each[2] != continent])
    if words.chance(0.5):
        holds = words.chance(0.5)
        return f"Is {capital if holds else other[1]} the capital of {name}?", holds
    holds = words.chance(0.5)
    return f"Is {name} in {continent if holds else other[2]}?", holds


def _is_class(words: Words) -> tuple[str, bool]:
    name, _, _, kind, _, _, _ = words.row("animals")
    holds = words.chance(0.5)
    shown = kind if holds else words.pick([each for each in ("bird", "fish", "insect", "plant") if each != kind])
    return f"Is {with_article(name)} {with_article(shown)}?", holds


def _is_bigger(words: Words) -> tuple[str, bool]:
    a, b = words.random.sample(range(1, 100), 2)
    return f"Is {a} {words.one_of('bigger', 'larger', 'more')} than {b}?", a > b


def _is_opposite(words: Words) -> tuple[str, bool]:
    left, right = words.row("opposites")
    if words.chance(0.5):
        return f"Is {right} the opposite of {left}?", True
    return f"Is {words.pick([each for each in words.tables['opposites'] if each[0] != left])[1]} the opposite of {left}?", False


COMMON = (
    ("Can a dog swim?", True), ("Can birds fly?", True), ("Can a stone swim?", False), ("Can cats read books?", False),
    ("Is fire hot?", True), ("Is ice warm?", False), ("Is the sun warm?", True), ("Is the moon made of cheese?", False),
    ("Do fish live in water?", True), ("Do trees have leaves?", True), ("Do cars eat grass?", False), ("Do cows lay eggs?", False),
    ("Do hens lay eggs?", True), ("Is water wet?", True), ("Is sugar sweet?", True), ("Is salt sweet?", False),
    ("Is winter colder than summer?", True), ("Is a mouse bigger than a horse?", False), ("Is night dark?", True),
    ("Is a snail fast?", False), ("Can people live without water?", False), ("Do we see with our ears?", False),
    ("Do we hear with our ears?", True), ("Is a feather heavy?", False), ("Is iron hard?", True), ("Is the sea salty?", True),
    ("Can whales live on land?", False), ("Can ducks swim?", True), ("Is glass soft?", False), ("Does the sun rise in the east?", True),
    ("Does a week have eight days?", False), ("Does a triangle have three sides?", True), ("Are lemons sour?", True),
    ("Can elephants fly?", False), ("Can frogs jump?", True), ("Is the desert dry?", True), ("Is an ocean a dry place?", False),
    ("Is milk black?", False), ("Do bees make honey?", True), ("Do spiders have eight legs?", True), ("Is the Earth round?", True),
)  # fmt: skip


def _is_common(words: Words) -> tuple[str, bool]:
    return words.pick(COMMON)


def _capitals(words: Words) -> Turns:
    kind = words.random.randrange(4)
    if kind == 0:
        text = words.pick(words.row("lists")[2].split(", "))
        question = words.one_of(f"Write {text} in capitals.", f"Put the word {text} in capital letters.", f"In capital letters: {text}",
                                f"Make this upper case: {text}", f"Turn {text} into big letters.", f"Write {text} with capitals only.")  # fmt: skip
        return [(question, text.upper())]
    if kind == 1:
        name, capital, _, _ = words.row("countries")
        question = words.one_of(
            f"What is the capital of {name}?", f"Name the capital of {name}.", f"Which city is the capital of {name}?"
        )
        return [
            (
                question + words.one_of(" All capitals, please.", " Use only capital letters.", " Answer in capitals."),
                capital.upper(),
            )
        ]
    if kind == 2:
        text = words.pick(words.row("lists")[2].split(", "))
        return [
            (words.one_of(f"Write {text.upper()} in small letters.", f"Make this lower case: {text.upper()}"), text.lower())
        ]
    first, _, short, _ = words.row("facts")
    return [(first + words.one_of(" In capitals, please.", " Answer in capital letters only."), short.upper())]


SENTENCES = (
    "the sun is up", "my cat likes milk", "we go home now", "the door is open", "it rains today", "the soup is hot", "birds sing at dawn",
    "the train is late", "I like green tea", "winter is coming", "the lake is deep", "bread smells good", "the house is small",
    "time flies", "the old clock ticks", "she reads a book", "the road is long", "blue is a color", "the boat is fast", "we are friends",
)  # fmt: skip


def _repeat(words: Words) -> Turns:
    text = words.pick(SENTENCES) if words.chance(0.6) else f"the {words.row('opposites')[0]} {words.row('animals')[0]}"
    if words.chance(0.35):
        text = words.pick(words.row("lists")[2].split(", "))
        question = words.one_of(
            f"Say only {text}.", f"Say {text} and nothing else.", f"Only say the word {text}.", f"Write just {text}."
        )
        return [(question, upper_first(text))]
    question = words.one_of(f"Repeat this: {text}.", f"Say this again: {text}.", f"Please repeat: {text}.", f"Copy this sentence: {text}.",
                            f"Repeat my words: {text}.", f"Say exactly this: {text}.")  # fmt: skip
    return [(question, upper_first(text) + ".")]


def _sort(words: Words) -> Turns:
    members = words.row("lists")[2].split(", ")
    items = words.random.sample(members, words.random.randint(3, 4))
    shown = ", ".join(items)
    if words.chance(0.3):
        numbers = words.random.sample(range(1, 100), words.random.randint(3, 4))
        question = (
            words.one_of("Sort these numbers: ", "Put these numbers in order, smallest first: ")
            + ", ".join(map(str, numbers))
            + "."
        )
        return [(question, ", ".join(map(str, sorted(numbers))) + ".")]
    question = words.one_of(f"Sort alphabetically: {shown}.", f"Put these in alphabetical order: {shown}.", f"Order by alphabet: {shown}.",
                            f"Which order does a dictionary have for {shown}?", f"Sort: {shown}.")  # fmt: skip
    return [(question, ", ".join(sorted(items, key=str.casefold)) + ".")]


def _spell(words: Words) -> Turns:
    text = words.pick([each for each in words.row("lists")[2].split(", ") if " " not in each]).lower()
    if words.chance(0.6):
        question = words.one_of(
            f"Spell {text} with dashes.", f"Put dashes between the letters of {text}.", f"Spell {text}, letter by letter."
        )
        return [(question, "-".join(text))]
    if words.chance(0.5):
        question = words.one_of(f"What is the first letter of {text}?", f"Which letter does {text} begin with?")
        return [(question, f"The first letter of {text} is {text[0]}.")]
    return [(f"How many letters does {text} have?", f"{'-'.join(text)}: it has {len(text)} letters.")]


def _short_form(words: Words) -> Turns:
    """Definitions with a limit on words."""
    name, definition, _ = words.row("terms")
    answer = upper_first(definition) + "."
    most = len(answer.split()) + words.random.randint(0, 4)
    question = words.one_of(f"Explain {name} in at most {in_words(most)} words.", f"Use {most} words or fewer: what is {name}?",
                            f"Tell me about {name} in no more than {most} words.", f"{upper_first(name)}, in under {most + 1} words?")  # fmt: skip
    return [(question, answer)]


HEAVIER = "feather leaf pencil apple book cat dog sheep cow car truck ship".split()
FASTER = "snail turtle person bicycle horse car train airplane rocket".split()
OLDER = "baby child teenager parent grandparent".split()


def _choose(words: Words) -> Turns:
    things, adjective = words.pick(
        ((HEAVIER, "heavier"), (FASTER, "faster"), (OLDER, "older"), (HEAVIER, "lighter"), (FASTER, "slower"))
    )
    low, high = sorted(words.random.sample(range(len(things)), 2))
    right = things[low] if adjective in ("lighter", "slower") else things[high]
    left = things[high] if right == things[low] else things[low]
    pair = words.random.sample([with_article(right), with_article(left)], 2)
    question = words.one_of(f"Which is {adjective}, {pair[0]} or {pair[1]}?", f"What is {adjective}: {pair[0]} or {pair[1]}?")
    if words.chance(0.5):
        return [(question + words.pick(ONE_WORD), upper_first(right) + ".")]
    return [(words.asked(question), f"{upper_first(with_article(right))} is {adjective} than {with_article(left)}.")]


def _keep_style(words: Words) -> Turns:
    """A rule for the following answers, then one or two questions."""
    pairs: Turns = []
    style = words.pick(("capitals", "word", "yes", "end"))
    for _ in range(words.random.randint(1, 2)):
        if style == "yes":
            question, holds = _is_common(words)
            pairs.append((question, "Yes." if holds else "No."))
            continue
        first, second, _, sentence = words.row("facts")
        question = words.one_of(first, second)
        if style == "word":
            name, capital, _, _ = words.row("countries")
            pairs.append((f"What is the capital of {name}?", capital + "."))
        else:
            pairs.append((question, sentence.upper() if style == "capitals" else sentence + " Have a nice day!"))
    rules = {
        "capitals": ("From now on answer in capital letters.", "Use only capital letters from here on.", "Write in capitals, please.",
                     "I read badly. Answer me in big letters.", "Please write everything in capitals now."),
        "word": ("Keep your answers to one word.", "Answer with the name only from now on.", "I want answers of one word."),
        "yes": ("From now on say only yes or no.", "Answer my next questions with yes or no.", "Only yes or no, please, for what I ask."),
        "end": ("End each answer with: Have a nice day!", "Always say Have a nice day! at the end.", "Finish every answer with Have a nice day!"),
    }  # fmt: skip
    agreed = {"capitals": "OK, I WILL WRITE IN CAPITALS.", "word": "OK.", "yes": "Yes.", "end": "Of course. Have a nice day!"}
    return [(words.pick(rules[style]), agreed[style]), *pairs]


def _complete(words: Words) -> Turns:
    left, right = words.row("opposites")
    thing, color = words.row("colors")
    name, _, _, kind, _, _, _ = words.row("animals")
    begun, end = words.pick((
        (f"{upper_first(left)} is the opposite of", right), (f"The color of {thing} is", color), (f"The {name} is a kind of", kind),
        (f"After {DAYS[0]} comes", DAYS[1]), ("Bees make", "honey"), ("Ice is frozen", "water"), ("A baker bakes", "bread"),
        ("We breathe", "air"), ("The sun shines during the", "day"), ("A cow gives", "milk"), ("Fish swim in", "water"),
    ))  # fmt: skip
    question = words.one_of(
        f"Complete the sentence: {begun} ...", f"Finish this: {begun} ...", f"Fill in the last word: {begun} ___"
    )
    if words.chance(0.5):
        return [(question + words.pick(ONE_WORD), upper_first(end) + ".")]
    return [(question, f"{begun} {end}.")]


# --- longer texts -----------------------------------------------------------------------------------------------------


def code(words: Words) -> Turns:
    wordings, language, text, sentence = words.row("code")
    values = {
        "w": words.one_of(*"Hello Welcome Goodbye Thanks Morning Summer Banana World News Garden Bread Python".split()),
        "n": str(words.random.randint(3, 12)), "a": str(words.random.randint(1, 20)), "b": str(words.random.randint(1, 50)),
        "c": str(words.random.randint(1, 50)),
    }  # fmt: skip
    values["n1"] = str(int(values["n"]) + 1)

    def filled(template: str) -> str:
        for key, value in values.items():
            template = template.replace("{" + key + "}", value)
        return template

    task = filled(words.pick(wordings.split(";")))
    question = words.one_of(f"Write {task}.", f"Please write {task}.", f"Show me {task}.", f"I need {task}.", f"Can you write {task}?",
                            f"Give me {task}.", f"How do I write {task}?", f"{upper_first(task)}, please.", f"What does {task} look like?")  # fmt: skip
    answer = f"```{language}\n{filled(text)}\n```"
    turns: Turns = [(question, answer if words.chance(0.3) else f"{answer}\n{filled(sentence)}")]
    if words.chance(0.12):
        turns.append((words.one_of("What does that do?", "Explain it, please.", "How does this work?"), filled(sentence)))
    return turns


HEROES = "kitten puppy hedgehog rabbit mouse owl snail fox robot dragon turtle duckling squirrel giant wizard baker sailor knight cloud".split()
PLACES = ("in a quiet forest", "by the sea", "in a small village", "on a green hill", "in a big city", "on a farm", "near a river",
          "in an old garden", "on a tiny island", "high in the mountains")  # fmt: skip
THINGS = (
    "lantern kite button red hat blue scarf key drum bell boat book umbrella shell coin teapot ladder".replace(
        "red hat", "red_hat"
    )
    .replace("blue scarf", "blue_scarf")
    .split()
)
TRAITS = "brave curious kind shy clever cheerful gentle patient sleepy lonely".split()
PLOTS = (
    "One morning the {t} was gone. {N} looked under leaves and behind stones, and asked everyone on the way. In the end {a} {g} had it, and "
    "gave it back with a smile. They shared a cake and laughed about the long search.",
    "One day a storm came up, and {a} {g} could not find the way home. {N} held up the {t} so that the {g} could see it from far away. Soon "
    "they sat together, warm and dry, and told each other stories.",
    "Nobody else believed that {N} could climb the tall tower. Step by step the little hero went up, with the {t} on its back. At the top "
    "{a} {g} was waiting and clapped. From that day on the two met there every evening.",
    "{N} found a {t} on the path and wanted to keep it. Then {a} {g} came by, crying, because it had lost just such a thing. {N} gave it "
    "back at once. The {g} was so happy that they became friends for life.",
    "Every night {N} tried to count the stars, but always fell asleep too soon. {A} {g} had an idea: they used the {t} as a pillow and "
    "counted together. They reached one hundred before their eyes closed.",
    "The people there had forgotten how to sing. {N} tapped on the {t}, and {a} {g} began to hum. One after the other joined in, and soon "
    "the whole place was full of music.",
    "{N} wanted to give {a} {g} a present, but had nothing but an old {t}. All night long {N} cleaned and painted it. The {g} said that it "
    "was the most beautiful present of all, because it was made with love.",
    "A small seed lay in the {t}. {N} watered it every day, and {a} {g} sang to it. After a long winter a flower opened, golden as the sun. "
    "Both were proud, and everybody came to look.",
)
ENDS = ("", " It is good to have a friend.", " Small steps lead far.", " Being kind is never wrong.", " And then they slept soundly.",
        " That was the best day of the year.", " Sharing makes everyone happy.")  # fmt: skip


def story(words: Words) -> Turns:
    """A story of 60 to 100 words about the asked heroes, or a couplet or joke."""
    if words.chance(0.25):
        topic, poem = words.row("couplets")
        question = words.one_of(f"Write a short poem about {topic}.", f"Two lines about {topic}, as a poem, please.", f"A poem on {topic}?",
                                f"Make a rhyme about {topic}.", f"Can you write a little verse on {topic}?")  # fmt: skip
        return [(question, poem)]
    if words.chance(0.2):
        topic, joke = words.row("jokes")
        return [
            (words.one_of(f"Tell me a joke about {topic}.", "Do you know a joke?", "Make me laugh.", "A joke, please."), joke)
        ]
    hero, other = words.random.sample(HEROES, 2)
    thing, name, trait = words.pick(THINGS).replace("_", " "), words.name(), words.pick(TRAITS)
    plot = words.pick(PLOTS).replace("{N}", name).replace("{t}", thing).replace("{g}", other)
    article = with_article(other).split()[0]
    plot = plot.replace(f"a {thing}", with_article(thing))
    plot = plot.replace("{a}", article).replace("{A}", upper_first(article))
    begin = words.one_of("Once upon a time", "Once", "Long ago", "Not long ago", "Many years ago")
    text = f"{begin}, {with_article(trait)} {hero} called {name} lived {words.pick(PLACES)}. {plot}{words.pick(ENDS)}"
    question = words.one_of(
        "Tell me a short story.", "Please tell me a story.", f"Tell me a story about {with_article(hero)}.", f"A story with {with_article(thing)}, please.",
        f"Write a short tale of {with_article(hero)} and {with_article(other)}.", f"I would like a little story about {with_article(hero)}.",
        f"Tell my children a story with {with_article(hero)} in it.", f"Invent a story: {with_article(hero)} called {name}.",
        f"A bedtime story about {with_article(trait)} {hero}, please.", f"Make up a tale of {with_article(hero)} and {with_article(thing)}.",
    )  # fmt: skip
    turns: Turns = [(question, text)]
    if words.chance(0.2):
        turns.append(
            (
                words.one_of("What was the hero called?", "Who is the story about?"),
                f"The story is about {name}, {with_article(trait)} {hero}.",
            )
        )
    return turns


def advice(words: Words) -> Turns:
    if words.chance(0.4):
        message, answer = words.row("moods")
        return [(message, answer)]
    task, steps = words.row("advice")
    if words.chance(0.25):
        first: Sequence[str] = steps.split(". ")
        question = words.one_of(
            f"Give me one tip: how do I {task}?", f"In one sentence: how can I {task}?", f"One short tip to {task}?"
        )
        return [(question, first[0].rstrip(".") + ".")]
    question = words.one_of(f"How do I {task}?", f"How can I {task}?", f"Tell me how to {task}.", f"Can you explain how to {task}?",
                            f"I want to {task}. What should I do?", f"What is a good way to {task}?", f"Help me {task}, please.")  # fmt: skip
    return [(words.asked(question), steps)]
