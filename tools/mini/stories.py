# SPDX-License-Identifier: Apache-2.0
"""Little stories with questions that have one right answer.

A story is told from the state of a small world: who is where, who holds what, what lies where, who
feels how, who has how many of what. Every sentence is an event that changes the state, and every
question is answered from the state or from what happened, so that the answer is right by construction.

    for record in generate(seed, count): ...      # {"messages": [...]} or {"text": ...}

Record i depends on (seed, i) alone. pairs() are drills for it. Called by recipe.py; `python3 stories.py SEED COUNT`
prints some.
"""
import json
import random
import sys

GIRLS = ("Anna Mia Ella Lily Rose Clara Nora Ida Emma Lucy Ruth Alice Jane Molly Grace Eva Hanna "
         "Sara Kate Zoe").split()
BOYS = ("Tom Ben Sam Max Leo Jack Finn Paul Oscar Peter Hugo Adam Luke Noah Henry Felix Simon Will "
        "Theo Carl").split()
ANIMALS = "dog cat rabbit duck hen goat pony mouse parrot turtle".split()
PLACES = ("kitchen garden barn school library market park forest beach attic cellar bakery "
          "workshop mill harbor station meadow church tower stable").split()
# Things that one person can carry.
THINGS = ("key ball book lamp drum kite map cup hat rope bell coin box doll flute basket letter "
          "spoon shovel blanket ring stone candle whistle mirror clock pencil scarf bucket "
          "umbrella").split()
# Where in a place a thing can lie.
SPOTS = ["on the table", "under the bench", "behind the door", "in the corner", "on the shelf",
         "near the window", "under the stairs", "in the old chest"]
COLORS = "red blue green yellow white black brown golden silver purple".split()
COUNTED = "apples pears nuts shells eggs buttons cookies plums stamps marbles".split()
FEELINGS = {
    "happy": ["{a} smiled.", "{a} laughed out loud.", "{a} sang a little song.", "{a} jumped for joy."],
    "sad": ["{a} began to cry.", "A tear ran down {a}'s cheek.", "{a} looked at the ground and sighed."],
    "angry": ["{a} stamped {his} foot.", "{a} shouted.", "{a} slammed the door."],
    "tired": ["{a} yawned.", "{a} could hardly keep {his} eyes open.", "{a} wanted to go to bed."],
    "afraid": ["{a} began to shake.", "{a} hid behind a tree.", "{a} did not dare to move."],
    "proud": ["{a} held {his} head high.", "{a} told everyone about it."],
}
CAUSES = {
    "happy": ["It was {a}'s birthday.", "The sun came out at last.", "{a} had won the race."],
    "sad": ["{a}'s best friend had moved away.", "The rain would not stop.", "{a} had lost the game."],
    "angry": ["Somebody had broken {a}'s toy.", "Nobody had waited for {a}."],
    "tired": ["{a} had worked all day.", "{a} had been up since dawn."],
    "afraid": ["There was a loud noise in the dark.", "{a} heard thunder."],
    "proud": ["{a} had learned to swim.", "{a} had painted a fine picture."],
}
OPENINGS = ["One morning, ", "One day, ", "It was a sunny day. ", "It was raining. ", "After lunch, ",
            "Late in the afternoon, ", "It was cold outside. ", "Once upon a time, ", "Before dinner, ",
            "On Sunday, ", "In the spring, ", "That evening, ", "", "", ""]
STILL_OPENINGS = ["It was a sunny day. ", "It was raining. ", "It was cold outside. ", ""]  # before a state
LINKS = ["", "", "", "Then ", "After that, ", "A little later, ", "Soon ", "Next, "]
NUMBERS = "no one two three four five six seven eight nine ten eleven twelve".split()


class World:
    """The state, the sentences told, and what may be asked about them."""

    def __init__(self, rng):
        self.rng = rng
        self.told = []
        self.people = rng.sample(GIRLS + BOYS, rng.choice((2, 2, 2, 3, 3)))
        self.where = {}    # person -> place
        self.been = {}     # person -> places in order
        self.holder = {}   # thing -> person
        self.lies = {}     # thing -> (place, spot)
        self.color = {}    # thing -> color
        self.count = {}    # person -> (what, how many)
        self.feels = {}    # person -> feeling
        self.pet = None    # (person, animal)
        self.asks = {}     # question -> answer; a later event overrides
        self.first = True

    def he(self, person):
        return "she" if person in GIRLS else "he"

    def his(self, person):
        return "her" if person in GIRLS else "his"

    def tell(self, sentence, link=True):
        if self.first:
            opening = self.rng.choice(OPENINGS if link else STILL_OPENINGS)
            self.first = False
        else:
            opening = self.rng.choice(LINKS) if link else ""
        if opening and not opening.endswith(". ") and sentence.startswith(("The ", "There ", "It ")):
            sentence = sentence[0].lower() + sentence[1:]
        self.told.append(opening + sentence)

    def name(self, thing):
        return f"{self.color[thing]} {thing}" if thing in self.color else thing

    # ---- what can happen ----------------------------------------------------------------------

    def go(self):
        person = self.rng.choice(self.people)
        place = self.rng.choice([p for p in PLACES if p != self.where.get(person)])
        verb = self.rng.choice(("went to", "walked to", "ran to", "hurried to", "came to"))
        self.tell(f"{person} {verb} the {place}.")
        self.where[person] = place
        self.been.setdefault(person, []).append(place)

    def go_together(self):
        if len(self.people) < 2:
            return self.go()
        one, two = self.rng.sample(self.people, 2)
        place = self.rng.choice([p for p in PLACES if p not in (self.where.get(one), self.where.get(two))])
        self.tell(f"{one} and {two} went to the {place} together.")
        for person in (one, two):
            self.where[person] = place
            self.been.setdefault(person, []).append(place)

    def new_thing(self):
        free = [t for t in THINGS if t not in self.holder and t not in self.lies]
        thing = self.rng.choice(free)
        if self.rng.random() < 0.6:
            self.color[thing] = self.rng.choice(COLORS)
        return thing

    def find(self):
        person = self.rng.choice(self.people)
        thing = self.new_thing()
        article = "an" if self.name(thing)[0] in "aeiou" else "a"
        if person in self.where:
            self.tell(f"{person} found {article} {self.name(thing)} in the {self.where[person]}.")
            self.asks[f"Where did {person} find the {thing}?"] = (
                f"{person} found the {thing} in the {self.where[person]}.")
        else:
            self.tell(f"{person} had {article} {self.name(thing)}.", link=False)
        self.holder[thing] = person

    def give(self):
        held = sorted(self.holder)
        if not held or len(self.people) < 2:
            return self.find()
        thing = self.rng.choice(held)
        giver = self.holder[thing]
        taker = self.rng.choice([p for p in self.people if p != giver])
        form = self.rng.choice(("{g} gave the {t} to {r}.", "{g} handed {r} the {t}.",
                                "{g} lent {r} the {t}."))
        self.tell(form.format(g=giver, r=taker, t=thing))
        self.holder[thing] = taker
        self.asks[f"Who got the {thing} from {giver}?"] = f"{taker} got the {thing} from {giver}."

    def put(self):
        held = sorted(t for t in self.holder if self.holder[t] in self.where)
        if not held:
            return self.find()
        thing = self.rng.choice(held)
        person = self.holder.pop(thing)
        spot = self.rng.choice(SPOTS)
        self.tell(f"{person} put the {thing} {spot} in the {self.where[person]}.")
        self.lies[thing] = (self.where[person], spot)

    def take(self):
        if not self.lies:
            return self.put()
        thing = self.rng.choice(sorted(self.lies))
        person = self.rng.choice(self.people)
        place, _ = self.lies.pop(thing)
        if self.where.get(person) != place:
            self.tell(f"{person} came to the {place} and took the {thing}.")
            self.where[person] = place
            self.been.setdefault(person, []).append(place)
        else:
            self.tell(f"{person} picked up the {thing}.")
        self.holder[thing] = person

    def feel(self):
        free = [p for p in self.people if p not in self.feels]
        if not free:
            return self.go()
        person = self.rng.choice(free)
        feeling = self.rng.choice(sorted(FEELINGS))
        words = {"a": person, "his": self.his(person)}
        cause = self.rng.choice(CAUSES[feeling]).format(**words)
        subject = self.he(person).capitalize() if cause.startswith(person) else person
        self.tell(f"{cause} {subject} was {feeling}. " +
                  self.rng.choice(FEELINGS[feeling]).format(**words), link=False)
        self.feels[person] = feeling

    def own_pet(self):
        if self.pet:
            return self.go()
        person = self.rng.choice(self.people)
        animal = self.rng.choice(ANIMALS)
        self.pet = (person, animal)
        self.tell(self.rng.choice((f"{person} had a {animal}.", f"{person} loved {self.his(person)} {animal}.",
                                   f"{person}'s {animal} came along.")), link=False)

    def collect(self):
        person = self.rng.choice(self.people)
        if person not in self.count:
            what, number = self.rng.choice(COUNTED), self.rng.randint(2, 6)
            self.tell(f"{person} had {NUMBERS[number]} {what}.", link=False)
            self.count[person] = (what, number)
            return
        what, number = self.count[person]
        if number < 7 and self.rng.random() < 0.5:
            more = self.rng.randint(1, 4)
            one = what[:-1]
            self.tell(f"{person} found {NUMBERS[more]} more {what if more > 1 else one}.")
            self.count[person] = (what, number + more)
        elif number > 2:
            less = self.rng.randint(1, number - 1)
            form = self.rng.choice(("{a} gave {n} of them away.", "{a} lost {n} of them."))
            if what in ("apples", "pears", "nuts", "eggs", "cookies", "plums"):
                form = self.rng.choice((form, "{a} ate {n} of them."))
            self.tell(form.format(a=person, n=NUMBERS[less]).replace("of them", f"of {self.his(person)} {what}"))
            self.count[person] = (what, number - less)

    # ---- what can be asked ----------------------------------------------------------------------

    def questions(self):
        asks = dict(self.asks)
        for thing, person in self.holder.items():
            asks[f"Who has the {thing}?"] = f"{person} has the {thing}."
        for thing, (place, spot) in self.lies.items():
            asks[f"Where is the {thing}?"] = f"The {thing} is {spot} in the {place}."
        for thing, color in self.color.items():
            asks[f"What color is the {thing}?"] = f"The {thing} is {color}."
        for person, place in self.where.items():
            asks[f"Where is {person}?"] = f"{person} is in the {place}."
            if len(self.been[person]) > 1 and self.been[person].count(self.been[person][0]) == 1:
                asks[f"Where did {person} go first?"] = f"{person} went to the {self.been[person][0]} first."
        for person, (what, number) in self.count.items():
            word = what if number != 1 else what[:-1]
            asks[f"How many {what} does {person} have?"] = f"{person} has {NUMBERS[number]} {word}."
        for person, feeling in self.feels.items():
            asks[f"How did {person} feel?"] = f"{person} was {feeling}."
        if self.pet:
            asks[f"What animal did {self.pet[0]} have?"] = f"{self.pet[0]} had a {self.pet[1]}."
        return asks


# Kinds of questions, the first that fits.
KINDS = [
    ("Where is the key?", r"Where is the .*"), ("Where is Anna?", r"Where is .*"),
    ("Where did Anna find the key?", r"Where did .* find .*"), ("Where did Anna go first?", r"Where did .* go first\?"),
    ("Who has the key?", r"Who has .*"), ("Who got the key from Anna?", r"Who got .*"),
    ("What color is the key?", r"What color .*"), ("How many nuts does Anna have?", r"How many .*"),
    ("How did Anna feel?", r"How did .* feel\?"), ("What animal did Anna have?", r"What animal .*"),
]
EVENTS = ([World.go] * 5 + [World.find] * 4 + [World.give] * 3 + [World.put] * 3 + [World.take] * 2 +
          [World.feel] * 2 + [World.collect] * 3 + [World.own_pet, World.go_together])


def story(seed, index, shortest=4, longest=10):
    """(story, [(question, answer), ...]) in an order of its own."""
    rng = random.Random(f"{seed}/{index}")
    world = World(rng)
    length = rng.randint(shortest, longest)
    while len(world.told) < length:
        rng.choice(EVENTS)(world)
    asks = list(world.questions().items())
    rng.shuffle(asks)
    text = ""
    for i, sentence in enumerate(world.told):
        text += ("" if i == 0 else "\n" if rng.random() < 0.12 else " ") + sentence
    return text, asks


# What belongs together: ways to tell it, and to say it again, by one half of it or the other.
PAIRS = [
    (("a {color} {thing}.", "{person} had a {color} {thing}."),
     ("The {thing} is {color}.", "{thing}: {color}.")),
    (("{person} had the {thing}.", "{person} found the {thing}.", "Then {person} got the {thing}."),
     ("{person} has the {thing}.", "The {thing} is {person}'s.", "{thing}: {person}.")),
    (("{person} went to the {place}.", "{person} ran to the {place}."),
     ("{person} is in the {place}.", "In the {place} is {person}.")),
    (("{person} saw the {thing} in the {place}.",),
     ("{person} found the {thing} in the {place}.", "The {thing} was in the {place}.", "{thing}: {person}.")),
    (("{person} put the {thing} {spot} in the {place}.",),
     ("The {thing} is {spot} in the {place}.", "{thing}: {place}.")),
    (("{person} had {number} {counted}.",), ("{person} has {number} {counted}.",)),
    (("{thing} {color}.",), ("{thing} {color}.",)),
]


def pairs(seed, index):
    """A drill in finding again what was told: some pairs, then the same ones in other orders and words."""
    rng = random.Random(f"{seed}/{index}/pairs")
    told, again = rng.choice(PAIRS)
    count = rng.randint(2, 6)
    drawn = {"person": rng.sample(GIRLS + BOYS, count), "thing": rng.sample(THINGS, count),
             "place": rng.sample(PLACES, count), "color": rng.sample(COLORS, count),
             "spot": [rng.choice(SPOTS) for _ in range(count)], "counted": rng.sample(COUNTED, count),
             "number": [rng.choice(NUMBERS[2:]) for _ in range(count)]}
    rows = [{name: values[i] for name, values in drawn.items()} for i in range(count)]
    lines = []
    for forms in (told, again, again, again):
        form = rng.choice(forms)
        lines.append(" ".join(form.format(**row) for row in rows))
        rng.shuffle(rows)
    return "\n".join(lines) + "\n"


def record(seed, index, most):
    """One record of training: a story alone, or with up to `most` questions."""
    text, asks = story(seed, index)
    rng = random.Random(f"{seed}/{index}/form")
    if rng.random() < 0.15 or not asks:
        return {"text": text + "\n"}
    return dialogue(text, asks[:rng.randint(1, most)])


def dialogue(text, asks):
    """A story and its questions, one turn each."""
    messages = [{"role": "user", "content": f"{text}\n\n{asks[0][0]}"},
                {"role": "assistant", "content": asks[0][1]}]
    for question, answer in asks[1:]:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def generate(seed, count):
    return (record(seed, i, 4) for i in range(count))


def held_out(seed, count):
    """Questions for `bitaxon eval --questions`, one of each story."""
    index = made = 0
    while made < count:
        text, asks = story(seed, index)
        index += 1
        if asks:
            made += 1
            yield {"question": f"{text}\n\n{asks[0][0]}", "answer": asks[0][1]}


if __name__ == "__main__":
    for one in generate(sys.argv[1], int(sys.argv[2])):
        print(json.dumps(one, ensure_ascii=False))
