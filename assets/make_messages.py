"""Messages to a chain of bicycle workshops, with what the front desk would note down: the data of lesson 07.

    python assets/make_messages.py          # writes assets/messages/{messages,heldout}.csv

A message is put together from parts: a greeting, who writes, what is wanted, where and when, a remark, a closing. Each list
of parts has two halves, "train" and "heldout", and so have the names of people and of towns: a held-out message has
sentences, names and towns that no training message has. What both share is the words for days and times, of which a
language has few. `assets/messages/README.md` says by which rules a message is labelled.

Always the same rows for the same seed. `assets/messages/by_hand.csv` was written by hand and not by this script.
"""

import csv
import datetime
import json
import random
import re
from dataclasses import dataclass, field
from pathlib import Path

ASSETS = Path(__file__).resolve().parent
SEED = 11
ROWS = {"train": 3840, "heldout": 240, "first": 960, "learn": 3840, "choose": 240}
COLUMNS = ("Received", "Channel", "Message", "Name", "Request", "Place", "Day", "Time")
FIELDS = ("Name", "Request", "Place", "Day", "Time")
REQUESTS = ("book", "move", "cancel", "ask")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

# --- what both halves share: days and times ------------------------------------------------------------------------

SHORT_DAYS = {"Monday": ("Mon",), "Tuesday": ("Tue", "Tues"), "Wednesday": ("Wed",), "Thursday": ("Thu", "Thurs"),
              "Friday": ("Fri",), "Saturday": ("Sat",), "Sunday": ("Sun",)}  # fmt: skip
MISSPELT_DAYS = {
    "Monday": ("Munday", "monady"), "Tuesday": ("Teusday", "Tusday"), "Wednesday": ("Wensday", "wednsday"),
    "Thursday": ("Thursady", "thrusday"), "Friday": ("Firday", "Fryday"), "Saturday": ("Saterday", "Satruday"),
    "Sunday": ("Sundy", "sunnday"),
}  # fmt: skip
HOURS = ("twelve", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")

# --- people and towns ----------------------------------------------------------------------------------------------

FIRST_NAMES = {
    "train": """Ahmed Amara Ananya Andrzej Anneke Antonio Arjun Astrid Awa Ayumi Beatriz Bogdan Bongani Camila Carmen Chidi
        Chloe Daniela Darius Deniz Dimitra Dmitri Eduardo Elena Emeka Emily Emre Erik Esther Fatima Femi Filip Fiona Giulia
        Goran Grace Hana Hassan Helga Hiroshi Hye-jin Ines Ingrid Isabel Ivan Jamal Jing Joao Jonas Josef Juan Kaito
        Karim Katarzyna Kenji Khadija Kofi Lakshmi Lars Layla Leila Linh Luca Lucia Magnus Malik Manuel Marek Maria Marta
        Mateo Mehmet Mei Mina Minh Miriam Mohammed Nadia Naledi Neha Nikos Noah Olga Omar Paolo Parisa Pedro Petra
        Pierre Priya Rafael Rahul Rania Rosa Samuel Sanjay Sara Sergei Shreya Siobhan Sofia Sunita Svetlana Tariq
        Thabo Thiago Thomas Tomasz Valentina Viktor Wei Yara Yusuf Zanele Zeynep""",
    "heldout": """Adwoa Akira Aliyah Amadou Anouk Bartosz Birgit Cem Dalisay Eleni Farid Gustavo Hamza Ilse Jelena Kwame
        Leandro Lwazi Maeve Marisol Nguyen Nikolai Oksana Oluwaseun Pilar Rashid Renata Ruth Samira Soo-min Stefan Tadeusz
        Tamar Tuan Ulrike Vikram Wanjiru Xiomara Yolanda Zoran""",
}
SURNAMES = {
    "train": """Abebe Adeyemi Ahmadi Almeida Andersson Bakker Banerjee Bauer Bianchi Castillo Chaudhry Chen Cohen Costa Dang
        Diaz Diallo Dlamini Fernandez Ferrari Fischer Garcia Georgiou Gonzalez Gupta Haddad Hansen Horvat Hussain Ivanova
        Jansen Johansson Kamau Kaya Khan Kim Kowalski Kumar Larsen Lopez Mahlangu Martin Mensah Moreau Moretti Mwangi
        Nakamura Ndlovu Nielsen Novak Nowak Okafor Osei Papadopoulos Park Patel Pereira Petrov Popescu Rahman Ramirez Rossi
        Saito Salazar Santos Sato Schmidt Sharma Silva Singh Suzuki Tanaka Torres Tran Traore Wagner Weber Yilmaz Zhang""",
    "heldout": """Achieng Barros Bergstrom Bhatt Chukwu Demir Dubois Eriksen Fonseca Gebre Hakimi Hoang Jovanovic Kovalenko
        Lindqvist Mbeki Morales Nkosi Oliveira Quispe Rasmussen Sithole Takahashi Vargas Wojcik""",
}
TOWNS = {
    "train": """Accra,Adelaide,Almaty,Amman,Ankara,Antwerp,Auckland,Austin,Baku,Bergen,Berlin,Bologna,Boston,Bristol,Brno,
        Bucharest,Cairo,Cali,Cape Town,Cardiff,Cusco,Dakar,Delhi,Dresden,Dublin,Durban,Florence,Geneva,Glasgow,Graz,Hamburg,
        Hanoi,Helsinki,Istanbul,Jaipur,Kampala,Krakow,Kyoto,La Paz,Lagos,Leeds,Leipzig,Lima,Lisbon,Ljubljana,Lyon,Malmo,
        Manila,Marseille,Medellin,Melbourne,Milan,Montreal,Mumbai,Munich,Nairobi,Nantes,Naples,Oslo,Ottawa,Perth,Porto,Prague,
        Quito,Recife,Riga,Rotterdam,San Jose,Seoul,Seville,Sofia,Stockholm,Taipei,Toronto,Tunis,Turin,Utrecht,Valencia,Vienna,
        Warsaw,Zurich""",
    "heldout": """Aarhus,Bilbao,Bordeaux,Bratislava,Cologne,Da Nang,Denver,Eindhoven,Galway,Ghent,Gothenburg,Izmir,Kigali,
        Kumasi,Mendoza,Nagoya,New Orleans,Pune,Rosario,Salzburg,Tartu,Tbilisi,Vilnius,Zagreb""",
}
RELATIVES = {
    "train": ("son", "daughter", "mother", "father", "husband", "wife", "neighbour", "brother"),
    "heldout": ("sister", "aunt", "grandson", "flatmate"),
}

# --- sentences -----------------------------------------------------------------------------------------------------
# {when} is where a time stands after a verb ("on Friday at 3 pm"), {slot} where a noun would ("Friday at 3 pm").

WANTED = {
    "train": {
        "book": (
            "Could I book a service {where} {when}?",
            "I would like an appointment {where} {when}.",
            "Please put me down for a repair {where} {when}.",
            "Do you have anything free {where} {when}?",
            "Can I bring my bike in {when} {where}?",
            "Need a check-up for my bike {where} {when}.",
            "I want to leave my bike with you {when} {where}.",
            "Is it possible to get my brakes done {where} {when}?",
            "Could you fit me in {when} {where}?",
            "I'd like to make an appointment {when} {where}.",
            "May I come by for a repair {when} {where}?",
            "Looking for an appointment {where} {when}.",
            "Can you reserve {slot} for me {where}?",
            "I hope you can repair my bike {where} {when}.",
            "Please book me in {when} {where}.",
            "We need two wheels straightened {where}, {slot} would suit us.",
            "Would {slot} be possible for a new chain {where}?",
        ),
        "move": (
            "Can we move my appointment {where} from {old} to {slot}?",
            "I need to change my appointment {where} to {slot} instead of {old}.",
            "Please shift me from {old} to {slot} {where}.",
            "{old} does not work for me any more, is {slot} possible {where}?",
            "Would it be okay to reschedule from {old} to {slot} {where}?",
            "My appointment {where} was for {old}, please make it {slot}.",
            "I can't do {old} after all. {slot} would be fine {where}.",
            "Instead of {old} I would rather come {when} {where}.",
            "Could you push my repair {where} back to {slot}?",
            "Please rebook me {where} for {slot}, I had {old}.",
            "I am booked {where} for {old} but need {slot}.",
            "Is it too late to swap {old} for {slot} {where}?",
            "I have to postpone my visit {where} to {slot}.",
        ),
        "cancel": (
            "Please cancel my appointment {where} {when}.",
            "I have to cancel {slot} {where}.",
            "I won't make it {when} {where}, please take me off the list.",
            "Unfortunately I can't come {when} {where}, so please drop my booking.",
            "My bike was stolen, so I no longer need the appointment {where} {when}.",
            "Could you cancel my booking {when} {where}?",
            "Sorry, I must call off the repair {where} {when}.",
            "You can give my slot {where} {when} to somebody else.",
            "No need for the service {when} {where} any more.",
            "I'm ill, so please delete my appointment {where} {when}.",
            "Please strike me off {where} for {slot}, I have fixed it myself.",
        ),
        "ask": (
            "Are you open {when} {where}?",
            "How much is a new chain {where}?",
            "What are your opening hours {where}?",
            "Do you also repair electric bikes {where}?",
            "Is my bike ready for pick-up {where}?",
            "How long does a service take {where}?",
            "Will somebody be in the shop {where} {when}?",
            "Do I need an appointment {where} {when} or can I just drop in?",
            "Can you tell me the price of new brake pads {where}?",
            "Do you sell children's helmets {where}?",
            "Is there parking {where}?",
        ),
    },
    "heldout": {
        "book": (
            "I was hoping to drop off my bike {where} {when}.",
            "Any chance of an appointment {when} {where}?",
            "Kindly arrange a repair for me {where} {when}.",
            "Could somebody look at my bike {where} {when}?",
            "I wish to schedule a tune-up {where}, ideally {slot}.",
            "Can I have {slot} {where} for a wheel repair?",
        ),
        "move": (
            "Could my booking {where} be changed from {old} to {slot}?",
            "I said {old}, but {slot} is better for me {where}.",
            "Please put off my appointment {where} until {slot}.",
            "I'd need to switch from {old} to {slot} {where}.",
            "Any chance to come {when} {where} rather than {old}?",
        ),
        "cancel": (
            "I am afraid I need to withdraw my booking {where} {when}.",
            "Kindly remove my appointment {when} {where}.",
            "I sold the bike, so forget about {slot} {where}.",
            "We will not be coming {when} {where} after all.",
            "Scrap my repair {where} {when}, it runs again.",
        ),
        "ask": (
            "Is the workshop closed {when} {where}?",
            "What would a new saddle cost me {where}?",
            "May I wait while you work on it {where}?",
            "Has my spare part arrived {where}?",
            "Can one pay by card {where}?",
        ),
    },
}
WHERE = {
    "train": ("in {place}", "at your {place} shop", "at the {place} branch", "at your shop in {place}",
              "in your {place} workshop"),
    "heldout": ("at the workshop in {place}", "at your {place} place", "with the team in {place}"),
}  # fmt: skip
WHEN = {  # by what is known: day and time, the day alone, the time alone, neither
    "train": {
        "both": ("on {day} at {time}", "{day} at {time}", "on {day}, {time}", "at {time} on {day}"),
        "day": ("on {day}", "this coming {day}"),
        "time": ("at {time}", "tomorrow at {time}"),
        "none": ("tomorrow", "next week", "as soon as possible", "", ""),
    },
    "heldout": {
        "both": ("this {day} at {time}", "{day}, say {time}", "at {time} this {day}"),
        "day": ("this {day}", "some time {day}"),
        "time": ("around {time}", "today at {time}"),
        "none": ("the day after tomorrow", "this month", "", ""),
    },
}
SLOT = {
    "train": {
        "both": ("{day} at {time}", "{day} {time}", "{day}, {time}"),
        "day": ("{day}", "the {day}"),
        "time": ("{time}", "tomorrow at {time}"),
        "none": ("another day", "a later date"),
    },
    "heldout": {
        "both": ("{day} around {time}", "{day}, preferably {time}"),
        "day": ("{day} some time", "next {day}"),
        "time": ("about {time}", "tomorrow, {time}"),
        "none": ("some other day", "the week after"),
    },
}
GREETING = {
    "train": ("Hi,", "Hello,", "Good morning,", "Hello there,", "Dear team,", "Hi all,", "Good afternoon,", "", "", ""),
    "heldout": ("Hey,", "Good evening,", "Dear all,", "Hi there,", "", ""),
}
BY_NAME = {
    "train": ("This is {name}.", "{name} here.", "My name is {name}.", "I am {name}.", "It's {name}.", "{name} speaking."),
    "heldout": ("Name's {name}.", "{name} again.", "I'm {name}, a customer of yours."),
}  # fmt: skip
SIGNED = {
    "train": ("Thanks, {name}", "Best, {name}", "Regards, {name}", "{name}", "- {name}", "Kind regards\n{name}",
              "Thank you! {name}"),
    "heldout": ("Cheers, {name}", "Yours, {name}", "Best wishes from {name}", "Sincerely\n{name}"),
}  # fmt: skip
FOR_ANOTHER = {
    "train": (
        "This is {other}, I write for my {relative} {name}.",
        "{other} here, it is for my {relative} {name}.",
        "I am {other}, but the bike belongs to my {relative} {name}.",
        "It's about the bike of {name}, my {relative}. I am {other}.",
    ),
    "heldout": (
        "My {relative} {name} asked me to write, I'm {other}.",
        "{other} on behalf of my {relative} {name}.",
    ),
}
REMARK = {
    "train": (
        "My chain keeps slipping.", "The front tyre is flat.", "It is a 28 inch city bike.", "My order number is {number}.",
        "The brakes squeak.", "I paid {price} last time.", "I rode here from {town} last week.",
        "You repaired my bike in {town} before.", "I only get out of work at {clock}.", "It is quite urgent.",
        "I can leave the bike overnight.", "It has 21 gears.", "You can reach me after {clock}.",
    ),
    "heldout": (
        "The gears jump.", "My phone ends in {number}.", "A friend in {town} told me about you.",
        "I have a meeting at {clock} that day.", "The back light is broken.", "It's about the red one with 26 inch wheels.",
    ),
}  # fmt: skip
CLOSING = {
    "train": ("Thank you!", "Thanks in advance.", "Many thanks.", "Sorry for the trouble.", "Please let me know.", "", "", ""),
    "heldout": ("Much appreciated.", "Thanks a lot!", "I apologise for the inconvenience.", "Hope that is fine.", "", ""),
}  # fmt: skip
CHANNELS = ("E-mail", "Web form", "SMS", "WhatsApp")

# --- the training half grew -----------------------------------------------------------------------------------------
# Trained on the parts above, a model learned these parts: it took a request of other words for another one, and wrote a town
# that it knew for one that it did not know. So parts were added. Whoever wrote them had seen the training parts above and no
# held-out one. What shares four words in a row with a held-out part, or is a held-out name or town, was left out.

ADDED = json.loads((ASSETS / "messages" / "parts.json").read_text(encoding="utf-8"))


def listed(parts):
    """A tuple of what stands in a text, separated by spaces, or by commas where there are some; other parts as they are."""
    if isinstance(parts, str):
        return tuple(part.strip() for part in parts.split("," if "," in parts else None))
    return {key: listed(inside) for key, inside in parts.items()} if isinstance(parts, dict) else parts


def joined(parts, added):
    """The parts and what was added to them; parts to which nothing was added stay."""
    if isinstance(parts, dict):
        return {key: joined(inside, added.get(key, {})) for key, inside in parts.items()}
    return (*parts, *added)


def parted(parts, choose: bool):
    """One in five of each list, or the others. A list that is too short for that stays whole."""
    if isinstance(parts, dict):
        return {key: parted(inside, choose) for key, inside in parts.items()}
    chosen = parts[2::5] if len(parts) > 4 else ()
    others = tuple(part for i, part in enumerate(parts) if i % 5 != 2) if chosen else ()
    return (chosen if choose else others) or parts


for _name in ("FIRST_NAMES", "SURNAMES", "TOWNS", "RELATIVES", "WANTED", "WHERE", "WHEN", "SLOT", "GREETING", "BY_NAME",
              "SIGNED", "FOR_ANOTHER", "REMARK", "CLOSING"):  # fmt: skip
    _halves = globals()[_name] = {half: listed(parts) for half, parts in globals()[_name].items()}
    _halves["first"] = _halves["train"]
    _halves["train"] = joined(_halves["first"], ADDED.get(_name, {}))
    _halves["learn"], _halves["choose"] = (parted(_halves["train"], choose) for choose in (False, True))


@dataclass
class Message:
    """A row of the file, and the parts that its message was put together from."""

    row: dict
    parts: list = field(default_factory=list)


# In these halves many names and towns are made of syllables. Of a list, however long, a model learns the entries.
INVENTED = {"train": 0.5, "learn": 0.5}
ONSETS = "b br c ch d dr f g gr h j k kh kl l m n ny p pr qu r s sh st t th tr v w x y z zh"
VOWELS, CODAS = (
    "a e i o u a e i o u ai ei ou ia aa oo",
    ("", "", "", "n", "r", "s", "l", "m", "k", "t", "nd", "ng", "sk"),
)


class Writer:
    """Writes messages of one half of the parts, with the random numbers of one seed.

    The halves are "train" and "heldout"; of the training half "first" is what it had before parts were added, and "learn" and
    "choose" share no part of a list: settings are chosen by these two.
    """

    def __init__(self, half: str, seed: int = SEED):
        self.half, self.chance = half, random.Random(f"{seed} {half}")
        self.first, self.last, self.towns = FIRST_NAMES[half], SURNAMES[half], TOWNS[half]
        self.parts: list[str] = []

    def part(self, parts: dict, *keys: str) -> str:
        """One of a list of parts, which is remembered."""
        listed = parts[self.half]
        for key in keys:
            listed = listed[key]
        chosen = self.chance.choice(listed)
        self.parts += [chosen] if chosen else []
        return chosen

    def likely(self, share: float) -> bool:
        return share > 0 and self.chance.random() < share

    def one_of(self, names: tuple) -> str:
        """One of the names, or in some halves one that nobody has."""
        if not self.likely(INVENTED.get(self.half, 0)):
            return self.chance.choice(names)
        onsets, vowels = ONSETS.split(), VOWELS.split()
        parts = [self.chance.choice(onsets) + self.chance.choice(vowels) for _ in range(self.chance.randint(1, 3))]
        return ("".join(parts) + self.chance.choice(CODAS)).title()

    def name(self) -> tuple[str, str]:
        """(as it is written, as it is noted down): a first name, a whole name, or a title and a surname."""
        kind, first, last = self.chance.random(), self.one_of(self.first), self.one_of(self.last)
        if kind < 0.45:
            return first, first
        if kind < 0.92:
            return f"{first} {last}", f"{first} {last}"
        return f"{self.chance.choice(('Mr', 'Mrs', 'Ms', 'Dr'))} {last}", last

    def clock(self) -> tuple[str, str]:
        """(as it is written, as it is noted down): a time at which workshops are open, 8:00 to 18:45."""
        hour, minute = self.chance.randint(8, 18), self.chance.choices((0, 30, 15, 45), (60, 25, 8, 7))[0]
        twelve, half_day = hour % 12 or 12, "am" if hour < 12 else "pm"
        ways = [f"{hour}:{minute:02}", f"{hour}.{minute:02}", f"{twelve}:{minute:02} {half_day}"]
        if minute == 0:
            part = "in the morning" if hour < 12 else "in the afternoon" if hour < 17 else "in the evening"
            ways += [f"{twelve} {half_day}", f"{twelve}{half_day}", f"{hour}h", f"{twelve} o'clock", f"{twelve}"]
            ways += [f"{HOURS[hour % 12]} o'clock", f"{twelve} {part}"] + (["noon", "midday"] if hour == 12 else [])
        else:
            ways += [f"{hour}h{minute:02}", f"{twelve}.{minute:02}{half_day}"]
            next_hour = HOURS[(hour + 1) % 12]
            words = {
                15: f"quarter past {HOURS[hour % 12]}",
                30: f"half past {HOURS[hour % 12]}",
                45: f"quarter to {next_hour}",
            }
            ways += [words[minute]] * 2
        return self.chance.choice(ways), f"{hour:02}:{minute:02}"

    def day(self) -> tuple[str, str]:
        """(as it is written, as it is noted down)."""
        day = self.chance.choice(DAYS)
        kind = self.chance.random()
        written = self.chance.choice(SHORT_DAYS[day]) if kind < 0.12 else day
        return (self.chance.choice(MISSPELT_DAYS[day]) if kind > 0.95 else written), day

    def typing_errors(self, text: str) -> str:
        """One or two slips in words of a part, never in what is filled in: letters swapped, dropped, or doubled."""
        words = text.split(" ")
        places = [i for i, word in enumerate(words) if len(word) > 3 and word.isalpha()]
        for i in self.chance.sample(places, min(len(places), self.chance.randint(1, 2))):
            word, at = words[i], self.chance.randrange(1, len(words[i]) - 1)
            swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
            words[i] = self.chance.choice((swapped, word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]))
        return " ".join(words)

    def wanted(self, request: str, filled: dict, noted: dict) -> str:
        """The sentence that says what is wanted, where and when; the rest goes into `filled` and `noted`."""
        sentence = self.part(WANTED, request)
        timed = "{when}" in sentence or "{slot}" in sentence
        with_day, with_time = timed and self.likely(0.85), timed and self.likely(0.3 if request == "ask" else 0.7)
        known = {(True, True): "both", (True, False): "day", (False, True): "time"}.get((with_day, with_time), "none")
        if with_day:
            filled["day"], noted["Day"] = self.day()
        if with_time:
            filled["time"], noted["Time"] = self.clock()
        if self.likely(0.75):
            filled["place"] = noted["Place"] = self.one_of(self.towns)
        where = self.part(WHERE) if noted["Place"] else ""
        when = self.part(WHEN, known) if "{when}" in sentence else ""
        slot = self.part(SLOT, known) if "{slot}" in sentence else ""
        old = ""
        if "{old}" in sentence:
            other = self.day()
            while other[1] == noted["Day"]:
                other = self.day()
            old = other[0] + (f" {self.clock()[0]}" if self.likely(0.25) else "")
        for name, text in (("where", where), ("when", when), ("slot", slot), ("old", old)):
            sentence = sentence.replace(f"{{{name}}}", text)
        return sentence

    def person(self, filled: dict, noted: dict) -> tuple[str, str]:
        """(a sentence before the wish, a line after it): who writes, and whom it is for."""
        kind = self.chance.random()
        if kind < 0.12:
            return "", ""
        filled["name"], noted["Name"] = self.name()
        if kind < 0.24:
            while filled.get("other", filled["name"]) == filled["name"]:
                filled["other"] = self.name()[0]
            filled["relative"] = self.chance.choice(RELATIVES[self.half])
            return self.part(FOR_ANOTHER), ""
        return (self.part(BY_NAME), "") if kind < 0.62 else ("", self.part(SIGNED))

    def remark(self, noted: dict, filled: dict) -> str:
        if not self.likely(0.25):
            return ""
        filled["town"] = self.one_of([town for town in self.towns if town != noted["Place"]])
        filled |= {
            "number": self.chance.randint(1000, 9999),
            "price": self.chance.randint(15, 90),
            "clock": self.clock()[0],
        }
        return self.part(REMARK)

    def message(self) -> Message:
        """One message with what is noted down of it; an empty text where it says nothing."""
        self.parts = []
        filled: dict = {}
        noted = dict.fromkeys(FIELDS, "") | {"Request": self.chance.choices(REQUESTS, (35, 28, 22, 15))[0]}
        wish = self.wanted(noted["Request"], filled, noted)
        before, after = self.person(filled, noted)
        remark = self.remark(noted, filled)
        middle = [remark, wish] if self.likely(0.3) else [wish, remark]
        pieces = [self.part(GREETING), before, *middle, after or self.part(CLOSING)]
        if self.likely(0.12):
            pieces = [self.typing_errors(piece) for piece in pieces]
        text = " ".join(filter(None, pieces)).format(**filled)
        text = re.sub(r" +(?=[?.,!])", "", re.sub(r" {2,}", " ", text))
        text = text[0].upper() + text[1:]
        return Message(self.received(text) | noted, self.parts)

    def received(self, text: str) -> dict:
        """When and how a message came. In short messages many people write no capitals, or no full stops."""
        channel, slip = self.chance.choice(CHANNELS), self.chance.random()
        if channel in ("SMS", "WhatsApp"):
            text = text.lower() if slip < 0.2 else text.replace("\n", " ")
            text = re.sub(r"\.(?= |$)", "", text) if slip > 0.9 else text
        minutes = self.chance.randrange(300 * 24 * 60)
        at = datetime.datetime(2025, 9, 1, 7, 0) + datetime.timedelta(minutes=minutes)
        return {"Received": f"{at:%d/%m/%Y %H:%M}", "Channel": channel, "Message": text}


def messages(half: str, seed: int = SEED) -> list[Message]:
    """All messages of a half, no text twice, in the order in which they came."""
    writer, found = Writer(half, seed), {}
    while len(found) < ROWS[half]:
        message = writer.message()
        found.setdefault(message.row["Message"].casefold(), message)
    return sorted(found.values(), key=_came_at)


def _came_at(message: Message) -> tuple:
    return datetime.datetime.strptime(message.row["Received"], "%d/%m/%Y %H:%M"), message.row["Message"]


def write(folder: Path) -> None:
    """messages.csv and heldout.csv as a spreadsheet exports them: UTF-8 with a byte order mark, lines end in CR LF."""
    for half, name in (("train", "messages"), ("heldout", "heldout")):
        with open(folder / f"{name}.csv", "w", encoding="utf-8-sig", newline="") as file:
            rows = csv.DictWriter(file, COLUMNS)
            rows.writeheader()
            rows.writerows(message.row for message in messages(half))


if __name__ == "__main__":
    write(ASSETS / "messages")
