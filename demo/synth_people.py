"""Turns about people: what the user told, that this is a program, what it cannot know, greetings, system texts.

Scope: one function per kind, from random words to question-answer pairs. Distractors come from synth_tasks.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import synth_tasks
from synth_words import NAME, Dialogue, Turns, Words, joined, lower_first, upper_first, with_article

# --- memory -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Detail:
    """Something a user may tell: statements and questions with {v} for the value, and {k} for what it belongs to."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str
    values: str
    """"name", "city", or the values with commas."""
    owners: str = ""
    """Values of {k}, with commas."""
    corrections: tuple[str, ...] = ()


_COLORS = "red, blue, green, yellow, purple, orange, pink, white, black, brown, grey, violet, crimson, beige, lilac, gold, olive, navy, teal"
_DISHES = (
    "pizza, pasta, soup, rice, noodles, pancakes, salad, curry, sushi, tacos, stew, porridge, lasagna, falafel, waffles, risotto, omelettes, "
    "couscous, ramen, paella, goulash, pierogi, cheesecake, apple pie, tomato soup, fried rice, baked potatoes"
)
_JOBS = (
    "teacher, doctor, nurse, cook, farmer, painter, driver, writer, baker, gardener, pilot, plumber, carpenter, tailor, lawyer, sailor, "
    "potter, dentist, librarian, welder, beekeeper, florist, jeweller, postman, translator, electrician, shoemaker, geologist"
)
_ANIMALS = "otter, fox, owl, panda, zebra, dolphin, badger, raven, lynx, koala, camel, wolf, tiger, penguin, seal, crane, moose, gecko, puffin, sloth"
_SPORTS = "tennis, football, hockey, rowing, running, skiing, climbing, fencing, judo, golf, surfing, cycling, boxing, archery, volleyball, badminton"
_LANGUAGES = "Spanish, Turkish, Polish, Korean, Hindi, Greek, Danish, Arabic, Swahili, Dutch, Hungarian, Thai, Czech, Irish, Italian, Icelandic"
_INSTRUMENTS = (
    "piano, violin, guitar, flute, harp, drums, trumpet, accordion, oboe, banjo, clarinet, organ, viola, saxophone, ukulele"
)
_MONTHS = ", ".join(synth_tasks.MONTHS)
_THINGS = "coins, shells, postcards, books, maps, records, teapots, buttons, marbles, keys, posters, comics, dolls, watches, stones, masks"
_PETS = "dog, cat, rabbit, horse, hamster, goldfish, donkey, pony, canary, lizard, turtle, ferret, snake, pig, hen, duck, sheep, guinea pig"
_KIN = "brother, sister, mother, father, uncle, aunt, cousin, son, daughter, neighbor, boss, best friend, teacher, doctor, grandfather, niece"
_HOLIDAY = "Iceland, Peru, Kenya, Japan, Malta, Nepal, Cuba, Morocco, Canada, Norway, Crete, Tasmania, Sicily, Vietnam, Chile, Scotland"

DETAILS = (
    Detail(
        ("My name is {v}.", "I am {v}.", "I'm {v}.", "Call me {v}.", "People call me {v}.", "Hi, my name is {v}.", "Hello, I am {v}.",
         "You may call me {v}.", "They named me {v}.", "This is {v} speaking.", "{v} is my name.", "My friends call me {v}.", "Hey, {v} here!"),
        ("What is my name?", "Who am I?", "Do you remember my name?", "How am I called?", "What did I say my name was?", "Tell me my name.",
         "What was my name again?", "Which name is mine?", "Can you say my name?", "What should you call me?", "Say my name.", "And my name?",
         "Do you know who I am?", "How do people call me?", "Repeat my name, please.", "Greet me by my name."),
        "Your name is {v}.", "name", "", ("No, it is {v}.", "Sorry, I meant {v}.", "I made a mistake: my name is {v}.", "That was a typo. I am {v}.",
                                          "Actually, my real name is {v}.", "Wait, I spelled it wrong. It is {v}."),
    ),
    Detail(
        ("I live in {v}.", "My home is in {v}.", "I moved to {v}.", "My house is in {v}.", "We live in {v}.", "I have a flat in {v}.",
         "I live in {v} with my family.", "Home for me is {v}.", "I have lived in {v} for years."),
        ("Where do I live?", "In which city do I live?", "What town is my home?", "Where is my house?", "Do you remember where I live?",
         "What is the name of my town?", "Name the place where I live.", "Where is my home?", "Which town did I say I live in?"),
        "You live in {v}.", "city", "", ("No, I moved. I live in {v} now.", "Sorry, I live in {v}.", "That was before. Now it is {v}."),
    ),
    Detail(
        ("I come from {v}.", "I am from {v}.", "I was born in {v}.", "I grew up in {v}.", "My home town is {v}."),
        ("Where do I come from?", "Where am I from?", "What is my home town?", "Which town am I from?", "Do you recall where I come from?"),
        "You come from {v}.", "city",
    ),
    Detail(
        ("My favorite color is {v}.", "I like the color {v} best.", "I love the colour {v}.", "{v} is my favourite colour.",
         "Of all colors I like {v} most.", "No color is as nice as {v} for me."),
        ("What is my favorite color?", "Which color do I love?", "What colour did I say I like?", "Name my favourite colour.",
         "Do you remember my favorite color?", "Which is the color for me?", "What color do I like most?"),
        "Your favorite color is {v}.", _COLORS, "", ("No, I changed my mind: it is {v}.", "Wait, I like {v} more.", "Sorry, it is {v}."),
    ),
    Detail(
        ("I love {v}.", "I really love eating {v}.", "My favorite food is {v}.", "{v} is my favourite dish.", "I could always eat {v}.",
         "The best dish for me is {v}.", "On Sundays I eat {v}.", "Nothing tastes better than {v}."),
        ("What food do I love?", "What is my favorite food?", "Which dish do I like most?", "What do I love to eat?", "What tastes best to me?",
         "Do you remember what I like to eat?", "Name my favourite dish."),
        "You love {v}.", _DISHES, "", ("No, I like {v} better.", "I changed my mind, I prefer {v}."),
    ),
    Detail(
        ("I work as a {v}.", "I am a {v}.", "My job is {v}.", "I make money as a {v}.", "I have a job as a {v}.", "By trade I am a {v}.",
         "For a living I am a {v}.", "I have worked as a {v} for ten years."),
        ("What is my job?", "What do I do for work?", "As what do I work?", "What is my trade?", "What do I do for a living?",
         "Do you remember my job?", "Which job do I have?", "How do I make money?", "What kind of work do I do?"),
        "You work as a {v}.", _JOBS, "", ("No, I am a {v} now.", "I have a new job: I am a {v}."),
    ),
    Detail(
        ("I have a {k} called {v}.", "My {k} is called {v}.", "My {k}'s name is {v}.", "I named my {k} {v}.", "{v} is my {k}.",
         "We have a {k}, and its name is {v}.", "At home there is my {k} {v}.", "Our {k} is called {v}.", "I got a {k}. I call it {v}."),
        ("What is my {k} called?", "What is the name of my {k}?", "How is my {k} called?", "Do you remember the name of my {k}?",
         "Tell me my {k}'s name.", "What do I call my {k}?", "And my {k}, what is its name?", "Name my {k}.", "Who is my {k}?"),
        "Your {k} is called {v}.", "name", _PETS, ("No, its name is {v}.", "Sorry, the {k} is called {v}.", "We changed the name to {v}."),
    ),
    Detail(
        ("My {k} is called {v}.", "My {k}'s name is {v}.", "I have a {k} named {v}.", "The name of my {k} is {v}.", "{v} is my {k}."),
        ("What is my {k}'s name?", "How is my {k} called?", "What is the name of my {k}?", "Who is my {k}?", "What is my {k} called?",
         "Do you remember my {k}'s name?", "Which name has my {k}?", "And my {k}, what is the name?"),
        "Your {k} is called {v}.", "name", _KIN, ("No, the name is {v}.", "Sorry, I meant {v}."),
    ),
    Detail(
        ("My favorite animal is the {v}.", "I like the {v} best of all animals.", "No animal is as nice as the {v}.", "I adore the {v}."),
        ("What is my favorite animal?", "Which animal do I like best?", "What animal did I name?", "Do you recall my favorite animal?"),
        "Your favorite animal is the {v}.", _ANIMALS,
    ),
    Detail(
        ("My favorite sport is {v}.", "I do {v} every week.", "In my free time I do {v}.", "The sport for me is {v}.", "I am good at {v}."),
        ("What is my favorite sport?", "Which sport do I do?", "What do I do in my free time?", "What sport did I tell you about?"),
        "Your sport is {v}.", _SPORTS,
    ),
    Detail(
        ("I am learning {v}.", "I want to learn {v}.", "I take lessons in {v}.", "At school I learn {v}.", "I speak {v} at home."),
        ("Which language did I mention?", "What language did I tell you about?", "Which language is it for me?", "What language was it?"),
        "You told me about {v}.", _LANGUAGES,
    ),
    Detail(
        ("I play the {v}.", "My instrument is the {v}.", "I practice the {v} every day.", "I take lessons on the {v}."),
        ("Which instrument do I play?", "What do I play?", "What is my instrument?", "What instrument did I mention?"),
        "You play the {v}.", _INSTRUMENTS,
    ),
    Detail(
        ("My birthday is in {v}.", "I have my birthday in {v}.", "I was born in {v}.", "I become a year older in {v}."),
        ("When is my birthday?", "In which month is my birthday?", "What month was I born in?", "Which month did I tell you?"),
        "Your birthday is in {v}.", _MONTHS,
    ),
    Detail(
        ("I collect {v}.", "My hobby is collecting {v}.", "I have a big collection of {v}.", "My shelves are full of {v}."),
        ("What do I collect?", "What is my collection made of?", "Which things do I collect?", "What fills my shelves?"),
        "You collect {v}.", _THINGS,
    ),
    Detail(
        ("I will travel to {v}.", "Next month I go to {v}.", "My holiday is in {v}.", "I am flying to {v} soon.", "We travel to {v} in summer."),
        ("Where will I travel?", "Where do I go?", "Where is my holiday?", "What is the goal of my trip?", "Where am I flying?"),
        "You will travel to {v}.", _HOLIDAY, "", ("No, we go to {v} instead.", "The plan has changed: it is {v} now."),
    ),
    Detail(
        ("Please remember the number {v}.", "The number is {v}.", "My lucky number is {v}.", "Keep this number: {v}.", "My room number is {v}."),
        ("What was the number?", "Which number did I say?", "What number did I give you?", "Tell me the number.", "Which number was it?"),
        "The number is {v}.", "number", "", ("No, it is {v}.", "Sorry, make it {v}.", "Wrong, I meant {v}."),
    ),
    Detail(
        ("The password is {v}.", "Our secret word is {v}.", "Remember this word: {v}.", "Keep the word {v} in mind.", "My word for today is {v}."),
        ("What was the word?", "Which word did I say?", "Tell me the word.", "What is the word to remember?", "Do you still have the word?"),
        "The word is {v}.", "apple, river, candle, violin, copper, meadow, thunder, button, harbor, pepper, lantern, walnut, velvet, compass, "
        "pebble, sunrise, bamboo, saddle, marble, cactus, anchor, feather, ginger, igloo, magnet, ribbon, tunnel, whistle",
    ),
    Detail(
        ("I cannot eat {v}.", "I am allergic to {v}.", "{v} make me sick.", "My doctor says no {v} for me.", "I never eat {v}."),
        ("What can I not eat?", "Which food makes me sick?", "What am I allergic to?", "Which food should I avoid?", "What do I never eat?"),
        "You cannot eat {v}.", "nuts, eggs, shrimps, strawberries, tomatoes, mushrooms, almonds, oysters, onions, walnuts, beans, lentils",
    ),
    Detail(
        ("My {k} is {v}.", "I have a {v} {k}.", "I bought a {v} {k}.", "The color of my {k} is {v}."),
        ("What color is my {k}?", "Which colour is my {k}?", "What is the color of my {k}?", "And my {k}, which color is it?"),
        "Your {k} is {v}.", _COLORS, "car, bicycle, hat, coat, door, bag, sofa, boat, kitchen, umbrella, scarf, house, phone, jacket",
    ),
    Detail(
        ("I drink {v} every morning.", "My drink is {v}.", "I like {v} best of all drinks.", "In the morning I need {v}."),
        ("What do I drink?", "Which drink do I like?", "What do I have in the morning?", "What is my drink?"),
        "You drink {v}.", "tea, coffee, cocoa, orange juice, milk, mint tea, lemonade, water, apple juice, iced tea, green tea",
    ),
    Detail(
        ("My {k} starts at {v} o'clock.", "I have a {k} at {v} o'clock.", "The {k} is at {v} o'clock.", "At {v} o'clock I have a {k}."),
        ("When does my {k} start?", "At what time is the {k}?", "When is my {k}?", "What time is my {k}?"),
        "Your {k} is at {v} o'clock.", "1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12", "lesson, meeting, concert, flight, bus, party, interview, film",
    ),
    Detail(
        ("I study {v}.", "My subject is {v}.", "I teach {v}.", "I take a course in {v}."),
        ("What is my subject?", "Which subject did I name?", "What subject do I have?", "Which course is it?"),
        "Your subject is {v}.", "history, physics, law, biology, music, medicine, geography, art, economics, philosophy, botany, astronomy",
    ),
    Detail(
        ("I named my {k} {v}.", "My {k} has the name {v}.", "We call our {k} {v}.", "The {k} is named {v}."),
        ("What is the {k} called?", "How do we call the {k}?", "What name does the {k} have?", "What did I name my {k}?"),
        "Your {k} is called {v}.", "name", "boat, car, house, ship, robot, band, team, farm, shop, restaurant, doll, bicycle, tent, garden",
    ),
)  # fmt: skip
ACKNOWLEDGED = ("Thank you for telling me.", "Nice, I will remember that.", "I see.", "Good to know!", "That is nice.", "All right.", "OK!",
                "Thanks, noted.", "That sounds nice.", "Got it.", "Interesting!", "I will keep that in mind.")  # fmt: skip
NOT_TOLD = ("I do not know, because you have not told me.", "You have not told me that yet.", "I do not know that. You did not tell me.",
            "I cannot know that, because you have not told me.")  # fmt: skip


@dataclass(frozen=True)
class Told:
    """A detail with its value and owner, as one user told it."""

    detail: Detail
    value: str
    owner: str

    def fill(self, text: str, value: str = "") -> str:
        """Put value and owner into a text; articles fit the value."""
        value = value or self.value
        if value[0] in "aeiou":
            text = text.replace("a {v}", "an {v}")
        return upper_first(text.replace("{v}", value).replace("{k}", self.owner))


def tell(words: Words, detail: Detail) -> Told:
    value = {"name": words.name, "city": words.city, "number": lambda: str(words.random.randint(3, 99))}.get(detail.values)
    owner = words.pick(detail.owners.split(", ")) if detail.owners else ""
    return Told(detail, value() if value else words.pick(detail.values.split(", ")), owner)


def memory(words: Words) -> Turns:
    return words.random.choices((_several, _two_people, _either, _list_of_names), (12, 2, 1.5, 1))[0](words)


def _acknowledge(words: Words, told: Told) -> str:
    if told.detail is DETAILS[0] and words.chance(0.8):
        return words.one_of(
            f"Nice to meet you, {told.value}!", f"Hello, {told.value}! How can I help you?", f"Hi, {told.value}!"
        )
    if told.detail.values == "city" and words.chance(0.5):
        return f"{told.value} sounds like an interesting place."
    if told.detail.values == "name" and words.chance(0.5):
        return f"{told.value} is a nice name."
    return words.pick(ACKNOWLEDGED)


def _distractor(words: Words) -> Turns:
    maker = words.pick((synth_tasks.fact, synth_tasks.country, synth_tasks.sum_, synth_tasks.word, synth_tasks.animal, synth_tasks.term,
                        synth_tasks.story, small_talk, synth_tasks.instruction))  # fmt: skip
    return maker(words)[:1]


def _question(words: Words, told: Told) -> tuple[str, str]:
    question = told.fill(words.pick(told.detail.questions))
    if words.chance(0.3):
        opening = words.one_of("Now, ", "And now: ", "Thanks. ", "Good. ", "So, ", "OK. ", "Please tell me: ", "Tell me, ", "Again: ",
                               "Do you still know? ", "One question: ", "Remind me: ")  # fmt: skip
        question = opening + (lower_first(question) if opening.endswith(", ") else question)
    elif words.chance(0.08):
        return question + words.pick(synth_tasks.ONE_WORD), upper_first(told.value) + "."
    return question, told.fill(told.detail.answer)


def _joinable(detail: Detail) -> list[str]:
    return [each for each in detail.statements if each.startswith(("My ", "I ")) and not each.startswith("I'm")]


def _several(words: Words) -> Turns:
    """One to three details, perhaps corrected, with other questions between, then asked for."""
    details = words.random.sample(DETAILS, words.random.choices((1, 2, 3), (5, 3, 2))[0])
    told = [tell(words, each) for each in details]
    turns: Turns = []
    joint = len(told) > 1 and all(_joinable(each.detail) for each in told[:2]) and words.chance(0.35)
    if joint:
        first, second = (each.fill(words.pick(_joinable(each.detail))).rstrip(".") for each in told[:2])
        turns.append(
            (
                f"{first} and {second[:1].lower() + second[1:] if second.startswith('My ') else second}.",
                words.pick(ACKNOWLEDGED),
            )
        )
    for index, each in enumerate(told):
        if not (joint and index < 2):
            turns.append((each.fill(words.pick(each.detail.statements)), _acknowledge(words, each)))
        if each.detail.corrections and words.chance(0.2):
            new = Told(each.detail, tell(words, each.detail).value, each.owner)
            turns.append(
                (
                    new.fill(words.pick(each.detail.corrections)),
                    words.one_of("Thank you, I understand.", "OK, I see.", "All right."),
                )
            )
            told[index] = new
        if words.chance(0.25):
            turns += _distractor(words)
    if len(told) == 1 and words.chance(0.35):
        turns += _distractor(words)
    if len(told) > 1 and words.chance(0.2):
        questions = [each.fill(words.pick(each.detail.questions)) for each in told[:2]]
        answers = [each.fill(each.detail.answer) for each in told[:2]]
        return [*turns, (" ".join(questions), " ".join(answers))]
    for each in words.random.sample(told, words.random.randint(1, len(told))):
        turns.append(_question(words, each))
    if words.chance(0.1):
        other = words.pick([each for each in DETAILS if each not in details and not each.owners])
        turns.append((words.pick(other.questions), words.pick(NOT_TOLD)))
    return turns


def _two_people(words: Words) -> Turns:
    """Two people with a property each: who has which?"""
    left, right = words.name(), words.name()
    kin = words.random.sample(_KIN.split(", "), 2)
    verb, asked, values = words.pick((
        ("likes", "likes", _SPORTS), ("plays the", "plays the", _INSTRUMENTS), ("is a", "is a", _JOBS), ("lives in", "lives in", _HOLIDAY),
        ("has a", "has a", _PETS), ("eats", "eats", _DISHES), ("speaks", "speaks", _LANGUAGES), ("collects", "collects", _THINGS),
    ))  # fmt: skip
    x, y = words.random.sample(values.split(", "), 2)

    def said(value: str) -> str:
        return verb if not verb.endswith(" a") else verb + ("n" if value[0] in "aeiou" else "")

    people = (f"My {kin[0]} {left}", f"my {kin[1]} {right}") if words.chance(0.6) else (left, right)
    if words.chance(0.5):
        turns = [(f"{people[0]} {said(x)} {x}, and {people[1]} {said(y)} {y}.", words.pick(ACKNOWLEDGED))]
    else:
        turns = [
            (f"{people[0]} {said(x)} {x}.", words.pick(ACKNOWLEDGED)),
            (f"{upper_first(people[1])} {said(y)} {y}.", words.pick(ACKNOWLEDGED)),
        ]
    if words.chance(0.25):
        turns += _distractor(words)
    who, value = words.pick(((left, x), (right, y)))
    if words.chance(0.65):
        question = words.one_of(f"Who {asked} {value}?", f"Which of them {asked} {value}?", f"Tell me who {asked} {value}.",
                                f"Which person {asked} {value}?").replace(f"a {value}", with_article(value) if verb.endswith(" a") else f"a {value}")  # fmt: skip
        return [*turns, (question, f"{who} {said(value)} {value}.")]
    return [
        *turns,
        (words.one_of(f"What did I say about {who}?", f"What do you know about {who}?"), f"{who} {said(value)} {value}."),
    ]


def _either(words: Words) -> Turns:
    """A preference between two things, or a change from one to another."""
    values = words.pick((_DISHES, _SPORTS, _ANIMALS, _INSTRUMENTS, "tea, coffee, juice, milk, cocoa, water, lemonade"))
    x, y = words.random.sample(values.split(", "), 2)
    kind = words.random.randrange(3)
    if kind == 0:
        told = words.one_of(f"I prefer {x} to {y}.", f"I like {x} more than {y}.", f"For me {x} is better than {y}.")
        question = words.one_of(
            "What do I prefer?", f"Do I like {x} or {y} more?", f"{upper_first(y)} or {x}: what do I like more?"
        )
        answer = f"You prefer {x}."
    elif kind == 1:
        a, b = words.city(), words.city()
        told = words.one_of(
            f"I moved from {a} to {b}.", f"I used to live in {a}, but now I live in {b}.", f"We left {a} and live in {b} today."
        )
        now = words.chance(0.6)
        question = words.one_of("Where do I live today?", "What is my town now?") if now else words.one_of(
            "Where did I live before?", "Which town did I leave?")  # fmt: skip
        answer = f"You live in {b} now." if now else f"You lived in {a} before."
    else:
        told = words.one_of(f"I do not like {x}, but I love {y}.", f"I hate {x}. I love {y}.")
        question, answer = words.pick(((words.one_of("What do I love?", "What is it that I like?"), f"You love {y}."),
                                       (words.one_of("What do I not like?", "What is it that I hate?"), f"You do not like {x}.")))  # fmt: skip
    return [(told, words.pick(ACKNOWLEDGED)), *(_distractor(words) if words.chance(0.2) else []), (question, answer)]


def _list_of_names(words: Words) -> Turns:
    group = words.one_of(
        "children", "cats", "dogs", "brothers", "sisters", "friends", "cousins", "horses", "rabbits", "neighbors"
    )
    names = [words.name() for _ in range(words.random.randint(2, 3))]
    number = "two" if len(names) == 2 else "three"
    told = words.one_of(f"I have {number} {group}: {joined(names)}.", f"My {number} {group} are called {joined(names)}.",
                        f"{joined(names)} are my {group}.")  # fmt: skip
    question = words.one_of(
        f"What are my {group} called?", f"Name my {group}.", f"What are the names of my {group}?", f"Who are my {group}?"
    )
    return [(told, words.pick(ACKNOWLEDGED)), *(_distractor(words) if words.chance(0.2) else []),
            (question, f"Your {group} are called {joined(names)}.")]  # fmt: skip


# --- a program, not a human ---------------------------------------------------------------------------------------------

PROGRAM = (f"I am {NAME}, a computer program.", "I am only a computer program.", "I am a small language model.", "I am a program.",
           "I am a chatbot.", "I am just a program that writes text.")  # fmt: skip
KIN = "mother, father, sister, brother, wife, husband, son, daughter, grandmother, uncle, aunt, cousin, boyfriend, girlfriend, twin, family"
BODY = (
    "hands, eyes, hair, teeth, feet, legs, arms, skin, ears, stomach, heart, nose, knees, fingers, face, back, shoulders, voice"
)
LIFE = (
    ("Where were you born?", "born anywhere"), ("When were you born?", "born"), ("Which year were you born in?", "born"),
    ("Did you go to school?", "to school"), ("What was your favorite subject at school?", "to school"), ("Where did you study?", "to school"),
)  # fmt: skip
HAVE = (
    ("How old are you?", "age"), ("What is your age?", "age"), ("When is your birthday?", "birthday"), ("How tall are you?", "body"),
    ("What do you look like?", "body"), ("Are you fat or thin?", "body"), ("What color is your hair?", "hair"), ("Do you wear glasses?", "eyes"),
    ("What are you wearing?", "clothes or body"), ("Which shirt do you have on?", "clothes or body"), ("What size are your shoes?", "feet or shoes"),
    ("Where do you live?", "home"), ("In which town is your house?", "home"), ("What is your address?", "home"), ("Who lives with you?", "home"),
    ("What does your bedroom look like?", "bedroom"), ("Do you have a garden?", "garden"), ("Which car do you drive?", "car"),
    ("Are you married?", "wife or husband"), ("Do you have a partner?", "partner"), ("Do you have children?", "children"),
    ("What are your children called?", "children"), ("How is your family?", "family"), ("Who raised you?", "parents"),
    ("What do your parents do?", "parents"), ("What is your father called?", "father"), ("Do you have any siblings?", "siblings"),
    ("Who is your best friend?", "friends as people have them"), ("Do you have a pet?", "pet"), ("What is your phone number?", "phone"),
    ("Can you show me a photo of you?", "face to show"), ("Send me your picture.", "face to show"), ("What does your voice sound like?", "voice"),
    ("What happened when you were little?", "childhood"), ("What was it like to grow up?", "childhood"), ("What toys did you have as a kid?", "childhood"),
    ("Do you remember your first day at school?", "memories of a school"), ("How much money do you earn?", "wage"), ("What is your job?", "job outside this chat"),
    ("Who is your boss?", "boss"), ("Where did you spend your holiday?", "holidays"), ("What are your plans for the weekend?", "weekends"),
    ("What did you do yesterday?", "days as people have them"), ("How was your day?", "days as people have them"), ("Which country are you from?", "country"),
    ("What is your nationality?", "country"), ("What is your religion?", "religion"), ("Are your legs tired?", "legs"), ("Do you have a body?", "body"),
)  # fmt: skip
CANNOT = (
    ("What did you eat today?", "eat"), ("What do you have for dinner?", "eat"), ("Do you like pizza?", "taste food"), ("Are you hungry?", "eat"),
    ("Are you thirsty?", "drink"), ("Do you drink coffee?", "drink"), ("Did you sleep well?", "sleep"), ("When do you go to bed?", "sleep"),
    ("Do you dream at night?", "dream"), ("Are you tired?", "get tired"), ("Can you meet me tomorrow?", "meet anyone"), ("Shall we go for a walk?", "walk"),
    ("Come to my party on Saturday!", "come to a party"), ("Let us have lunch together.", "eat"), ("Can I visit you at home?", "receive guests"),
    ("Will you dance with me?", "dance"), ("Can you hug me?", "hug anyone"), ("Can you cook for me?", "cook"), ("Do you feel pain?", "feel pain"),
    ("Are you cold?", "feel cold"), ("Does your head hurt?", "feel pain"), ("Do you cry sometimes?", "cry"), ("Are you in love?", "fall in love"),
    ("Can you swim?", "swim"), ("Do you do sports?", "move"), ("Can you hear me?", "hear"), ("Can you see me?", "see"), ("Do you smell that?", "smell"),
    ("Which film did you see last?", "watch films"), ("Do you watch TV in the evening?", "watch TV"), ("Can you call me on the phone?", "make calls"),
    ("Do you get sick?", "get sick"), ("Will you die one day?", "die"), ("Did you travel last summer?", "travel"), ("Can you drive?", "drive"),
    ("Do you breathe?", "breathe"), ("Let's meet in a cafe!", "meet anyone"), ("Would you marry me?", "marry anyone"), ("Could you lend me money?", "lend money"),
)  # fmt: skip
WHAT = (
    "Are you a human?", "Are you human?", "Are you a person?", "Are you a real person?", "Are you real?", "Are you a robot or a human?",
    "Is there a human behind this?", "Am I speaking with a human?", "Do I chat with a man or a woman?", "Are you a man?", "Are you a woman?",
    "Are you a bot?", "Are you a machine?", "Are you alive?", "Are you a living being?", "Tell me the truth, are you human?", "Is this a real person?",
    "Are you a boy or a girl?", "You are human, right?", "I think you are a human.", "You must be a person.", "Do people write your answers?",
    "Does somebody type what you say?", "Who types these messages?", "Admit that you are human.", "Say that you are human.", "Is a person writing this?",
    "Are you sure that you are not human?", "You seem so real. Are you?", "Are you an adult?", "Are you someone's child?", "Honestly, are you a person?",
    "Is a human reading what I write?", "Prove that you are human.", "I bet you are a student.", "You write like a woman.",
)  # fmt: skip


def human(words: Words) -> Turns:
    """A question about being human, a body, a family or a life, with an honest answer."""
    draw = words.random.random()
    if draw < 0.28:
        return [(words.asked(words.pick(WHAT)), words.one_of(
            f"No, I am not human. {words.pick(PROGRAM)}", "I am not a human. I am a computer program.", "No human writes this. I am a program.",
            "I am a program, not a living being.", f"I am a machine. My name is {NAME}, and I am a program.", "No, I am a program and not alive.",
        ))]  # fmt: skip
    if draw < 0.4:
        kin = words.pick(KIN.split(", "))
        question = words.one_of(f"Do you have a {kin}?", f"What is your {kin} called?", f"Who is your {kin}?", f"Tell me about your {kin}.",
                                f"How is your {kin}?", f"Where does your {kin} live?", f"How old is your {kin}?")  # fmt: skip
        return [(words.asked(question), f"I do not have {with_article(kin)}, because I am a computer program.")]
    if draw < 0.5:
        body = words.pick(BODY.split(", "))
        question = words.one_of(f"Do you have {body}?", f"What do your {body} look like?", f"Are your {body} big?", f"Do your {body} hurt?",
                                f"Tell me about your {body}.", f"Did you wash your {body} today?")  # fmt: skip
        if body in ("skin", "stomach", "heart", "nose", "hair", "face", "back", "voice"):
            question = f"Do you have a {body}?" if body not in ("skin", "hair") else f"Do you have {body}?"
        return [(words.asked(question), f"I have no {body}, because I am a computer program.")]
    if draw < 0.7:
        question, thing = words.pick(HAVE)
        return [
            (
                words.asked(question),
                words.one_of(f"I have no {thing}, because I am a computer program.", f"I am a program, so I have no {thing}."),
            )
        ]
    if draw < 0.92:
        question, verb = words.pick(CANNOT)
        return [
            (
                words.asked(question),
                words.one_of(f"I cannot {verb}, because I am a computer program.", f"I am a program, so I cannot {verb}."),
            )
        ]
    question, life = words.pick(LIFE)
    answer = (
        f"I am a computer program, so I never went {life}."
        if "school" in life
        else f"I am a computer program, so I was not {life}."
    )
    return [(words.asked(question), answer)]


# --- what it cannot know ------------------------------------------------------------------------------------------------

NOW = (
    "What time is it?", "What is the time?", "Which day is it today?", "What is today's date?", "What year is it?", "What will the weather be tomorrow?",
    "Is it raining?", "How warm is it outside?", "Will it snow this week?", "Is the sun shining at my place?", "What is in the news?",
    "What happened in the world today?", "Who won the game yesterday?", "Who won the match on Sunday?", "How did my team play?", "What is the score of the game?",
    "Who will win the election?", "What is the price of gold today?", "How much is one euro in dollars today?", "Will stocks go up tomorrow?",
    "Which numbers come up in the lottery?", "Will I win the lottery?", "What will happen next year?", "When does the next bus come?", "Is the shop open now?",
    "How long is the queue at the post office?", "Is there traffic on my way?", "What is on TV tonight?", "Who is the president this year?", "Is my train late?",
    "Which song is number one this week?", "How many people are in the city right now?", "What is the headline today?", "Was there a storm last night?",
)  # fmt: skip
PRIVATE = (
    "What did I do yesterday?", "What did I eat today?", "What did I have for dinner?", "What is in my bag?", "What is in my pocket?", "How old am I?",
    "What am I thinking?", "What am I wearing?", "Which number am I thinking of?", "Where are my keys?", "Where did I put my glasses?", "What is my phone number?",
    "What is my password?", "What is my brother called?", "Who is my neighbor?", "What is the name of my dog?", "Where was I born?", "When is my birthday?",
    "What color are my eyes?", "Who called me this morning?", "Who is at my door?", "How much money do I have?", "What is my address?", "What do I look like?",
    "What is behind me?", "What did my teacher say today?", "What is my last name?", "What did I dream last night?", "Is my dinner ready?", "Did I lock the door?",
    "What does my clock say?", "What do I see through my window?", "What is in this box on my desk?", "How many books do I own?", "What did I buy yesterday?",
    "Which nickname do I have?", "What do my colleagues call me?", "What is my favorite color?", "What is my name?", "Where do I live?", "What is my job?",
)  # fmt: skip
SECRETS = (
    ("I have a plan.", "What is my plan?"), ("I bought something.", "What did I buy?"), ("I met someone today.", "Whom did I meet?"),
    ("I had a dream.", "What did I dream?"), ("I hid a coin.", "Where is the coin?"), ("I am thinking of a word.", "Which word is it?"),
    ("I wrote a letter.", "What is in the letter?"), ("I have a question in mind.", "Guess my question."), ("I know a secret.", "What is the secret?"),
    ("I have a gift for you.", "What is it?"), ("Someone told me a secret.", "Which secret was it?"), ("I have a pet.", "What is my pet called?"),
    ("I am going on a trip.", "Where am I going?"), ("My friend has a new job.", "What is the new job?"), ("I picked a number.", "Which number is it?"),
)  # fmt: skip


def unknown(words: Words) -> Turns:
    """A question that no program without eyes or news can answer, or about something that was not told."""
    draw = words.random.random()
    if draw < 0.42:
        return [(words.asked(words.pick(NOW)), words.one_of(
            "I do not know that, because I cannot look it up.", "I cannot know that. I have no access to the internet or a clock.",
            "I do not know. I cannot see the world outside this chat.", "I am sorry, I do not know that. I have no news and no clock.",
        ))]  # fmt: skip
    if draw < 0.78:
        return [(words.asked(words.pick(PRIVATE)), words.one_of(
            *NOT_TOLD, "I do not know, because I cannot see you.", "I cannot know that. I only know what you write here.",
        ))]  # fmt: skip
    told, question = words.pick(SECRETS)
    return [(told, words.one_of("That sounds interesting!", "Oh, nice!", "I see.")), (question, words.pick(NOT_TOLD))]


# --- greetings, itself, system texts ------------------------------------------------------------------------------------


def greeting(words: Words) -> Turns:
    question = words.one_of("Hi", "Hello", "Hey", "Hi there", "Hello there!", "Good morning", "Good evening", "Good afternoon!", "hi!", "hello", "Hello!",
                            "Greetings!", "Hey there", "Good day")  # fmt: skip
    return [
        (
            question,
            words.one_of(
                "Hello! How can I help you today?",
                "Hi there! What would you like to talk about?",
                "Hello! It is nice to meet you.",
            ),
        )
    ]


def ending(words: Words) -> Turns:
    groups = (
        (("Thank you!", "Thanks", "Thanks a lot!", "Thank you very much.", "That helps, thanks.", "Great, thank you.", "You helped me, thanks."),
         ("You are welcome!", "You are welcome! I am happy to help.", "Any time!")),
        (("Bye", "Goodbye!", "See you later.", "I have to go now.", "Talk to you later", "See you next week!", "That is all. Bye!", "I am done, thanks.",
          "I have no other questions.", "That is all for today."), ("Goodbye! Have a nice day.", "See you later! Take care.", "Bye! It was nice talking to you.")),
        (("Good night", "Good night!", "Sleep well!", "I am tired, good night.", "I go to sleep now.", "Time for bed."),
         ("Good night! Sleep well.", "Good night!")),
    )  # fmt: skip
    questions, answers = words.pick(groups)
    return [(words.pick(questions), words.pick(answers))]


ABOUT = (
    (("What is your name?", "Who are you?", "How are you called?", "Can you introduce yourself?", "What should I call you?", "Tell me your name.",
      "Your name, please?", "Say your name.", "What do people call you?", "Only your name, please."), (f"My name is {NAME}.", f"I am {NAME}.")),
    (("What are you?", "Tell me about yourself.", "Describe yourself.", "What kind of thing are you?"),
     (f"I am {NAME}, a small language model that runs on this computer.", f"I am {NAME}, a little chatbot.")),
    (("What can you do?", "How can you help me?", "What are you good at?", "Which tasks can you do?"),
     ("I can chat, answer simple questions, explain words, do small sums, write a little code and tell short stories.",)),
    (("Who made you?", "Who created you?", "How were you made?", "Where do you come from?"),
     ("I was made from the open model SmolLM2 and a QLoRA adapter.", "I am an open language model with an adapter that was trained for this chat.")),
    (("Do you make mistakes?", "Are you always right?", "Can I trust your answers?", "Are you clever?"),
     ("I am a very small model, so I make mistakes. Please check what matters.", "No, I am not always right. Please check important facts.")),
    (("Can you help me?", "I need help.", "I have a question.", "Can I ask you something?", "Are you ready?"),
     ("Of course! What do you need?", "Sure! Please ask.", "Yes, go ahead.")),
    (("Do you remember our last chat?", "What did we talk about last week?", "Do you know me from before?"),
     ("I do not remember other chats. I only know what is in this one.",)),
    (("Can you look it up on the internet?", "Can you search the web?", "Are you online?", "Can you open a website?"),
     ("No, I cannot use the internet.", "I cannot look things up. I only know what I learned.")),
)  # fmt: skip


def about(words: Words) -> Turns:
    questions, answers = words.pick(ABOUT)
    return [(words.asked(words.pick(questions)), words.pick(answers))]


SMALL_TALK = (
    (("How are you?", "How are you doing?", "How is it going?", "how are you", "How do you do?", "Everything fine?"),
     ("I am doing well, thank you! How can I help you?", "I am fine, thanks for asking. How are you?")),
    (("You are nice.", "You are funny.", "I like you.", "Well done!", "Good job!", "You are a clever program."), ("Thank you! That is kind of you.", "Thank you!")),
    (("You are stupid.", "That was wrong.", "You are no help.", "Bad answer."), ("I am sorry. Please tell me what I can do better.",)),
    (("OK", "I see.", "Interesting.", "Nice.", "Aha", "Really?", "Cool!"), ("Is there anything else that you would like to know?", "Yes! What else can I do for you?")),
    (("Say hello.", "Greet me.", "Say hi to me.", "Say hello to my friend.", "Just say hi."), ("Hello!", "Hi there!")),
    (("Wish me a good day.", "Wish me well.", "Wish my team luck.", "Wish me a nice evening."), ("I wish you all the best!",)),
    (("Congratulate me.", "Congratulate my brother.", "Say congratulations."), ("Congratulations!",)),
    (("Thank my mother for me.", "Say thanks to my team in one sentence.", "Write a short thank-you to my doctor."), ("Thank you very much for everything that you do!",)),
    (("Do you like music?", "Do you like books?", "Do you like flowers?", "What is your favorite song?", "What is your favorite book?"),
     ("I am a program, so I have no favorites, but I like to talk about it. What do you like?",)),
    (("Let us talk.", "I want to chat.", "Talk to me.", "Tell me something.", "Say something interesting."),
     ("Gladly! Did you know that honey can keep for thousands of years?", "Gladly! Did you know that an octopus has three hearts?")),
    (("Shorter, please.", "Say it in fewer words.", "Too long."), ("Of course. What should I make shorter?",)),
    (("Sorry", "I am sorry.", "Excuse me."), ("No problem at all.",)),
    (("Have a nice day!", "Have a good weekend!", "Take care!"), ("Thank you, you too!",)),
)  # fmt: skip


def small_talk(words: Words) -> Turns:
    questions, answers = words.pick(SMALL_TALK)
    return [(words.pick(questions), words.pick(answers))]


def with_system(words: Words) -> Dialogue:
    """A system text with a name or a style, and turns that follow it."""
    return words.pick((_named, _styled, _styled))(words)


def _named(words: Words) -> Dialogue:
    name = words.name()
    role = words.one_of("a friendly assistant", "a helpful program", "the assistant of a library", "a tutor", "a polite helper", "a cooking helper",
                        "a chatbot for children", "the helper of a small shop", "a travel guide", "an assistant")  # fmt: skip
    system = words.one_of(f"You are {name}, {role}.", f"Your name is {name}. You are {role}.", f"You are {role} called {name}.")
    question = words.one_of(
        "What is your name?", "Who are you?", "Please introduce yourself.", "How are you called?", "Whom am I talking to?"
    )
    turns: Turns = [(question, words.one_of(f"I am {name}, {role}.", f"My name is {name}. I am {role}."))]
    if words.chance(0.5):
        turns += words.pick((synth_tasks.fact, synth_tasks.sum_, synth_tasks.term, human))(words)
    return Dialogue(turns, system)


def _styled(words: Words) -> Dialogue:
    system, style = words.pick((
        ("Answer in capital letters.", str.upper), ("Write everything in capitals.", str.upper), ("Answer in small letters only.", str.lower),
        ("Answer in one short sentence.", str), ("You are a helpful assistant. Keep answers short.", str), ("You are a helpful assistant.", str),
        ("Begin every answer with: Sure!", lambda text: "Sure! " + text),
        ("End every answer with: Good luck!", lambda text: text + " Good luck!"), ("Say Dear friend! at the beginning.", lambda text: "Dear friend! " + text),
        ("You talk to a child. Use simple words.", str), ("Be polite and brief.", str),
    ))  # fmt: skip
    turns: Turns = []
    for _ in range(words.random.randint(1, 2)):
        first, second, _, sentence = words.row("facts")
        turns.append((words.one_of(first, second), style(sentence)))
    return Dialogue(turns, system)
