"""Write made-up job ads in several languages, as JSON Lines files in a folder a day.

    python generate.py data --files 200 --ads 100

writes data/2020/01/01/part-00000.jsonl and so on, about 1.4 kB an ad. The same arguments write the same bytes.
"""

from __future__ import annotations

import argparse
import datetime as dt
import gzip
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST = 200
"""With ``skew``, the largest file has at most this many times as many ads as asked for."""


@dataclass(frozen=True)
class Summary:
    """What was written.

    Attributes:
        files: how many files, bad ones included.
        ads: how many ads there are in the good files.
        bytes: the size of all files together.
        bad: what is wrong with each bad file, by its key (its path under the folder).
    """

    files: int
    ads: int
    bytes: int
    bad: dict[str, str]


@dataclass(frozen=True)
class _Language:
    countries: tuple[str, ...]
    currency: str
    titles: tuple[str, ...]
    details: tuple[str, ...]
    sentences: tuple[str, ...]


def _note(out: Path) -> Path:
    """The file beside the folder with the names of the files in it that this module has written."""
    whole = out.resolve()
    return whole.with_name(f".{whole.name}.made-up")


def _cleared(out: Path) -> set[str]:
    """Remove what an earlier call has written, and nothing else; returns the names of the files that stay."""
    note = _note(out)
    for name in note.read_text("utf-8").splitlines() if note.is_file() else ():
        path = out / name
        path.unlink(missing_ok=True)
        while path.parent != out and path.parent.is_dir() and not any(path.parent.iterdir()):
            path = path.parent
            path.rmdir()
    return _names(out)


def _names(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def generate(
    out: str | Path,
    *,
    files: int = 200,
    ads: int = 100,
    days: int = 1,
    start: str = "2020-01-01",
    seed: int = 7,
    skew: bool = False,
    bad: int = 2,
) -> Summary:
    """Write ``files`` files of ``ads`` ads under ``out``, spread evenly over the days, in place of those of before.

    Args:
        out: the folder to write to; made if absent.
        files: how many files in all, the bad ones included.
        ads: how many ads a file has; with ``skew``, roughly the mean.
        days: over how many days the files are spread, each a folder ``YYYY/MM/DD``.
        start: the first day.
        seed: another seed writes other ads.
        skew: give the files' sizes a heavy tail: most smaller, a few many times as large.
        bad: how many files are broken, each in one of three ways in turn.
    """
    if files < 1 or ads < 1 or days < 1 or not 0 <= bad <= files:
        raise ValueError("files, ads and days must be at least 1, and bad from 0 to files")
    first = dt.date.fromisoformat(start)
    rng = random.Random(seed)
    broken = set(rng.sample(range(files), bad))
    others = _cleared(Path(out))
    total = size = 0
    reasons: dict[str, str] = {}
    for i in range(files):
        rng = random.Random(f"{seed}/{i}")  # a file of its own, however many there are
        day = first + dt.timedelta(days=i * days // files)
        key = f"{day:%Y/%m/%d}/part-{i:05d}.jsonl"
        count = _skewed(rng, ads) if skew else ads
        lines = [json.dumps(_ad(rng, f"{i:05d}-{n:06d}", day), ensure_ascii=False) + "\n" for n in range(count)]
        data = "".join(lines).encode()
        if i in broken:
            data, reasons[key] = _break(lines, len(reasons))
        else:
            total += count
        size += len(data)
        path = Path(out, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    _note(Path(out)).write_text("\n".join(sorted(_names(Path(out)) - others)), "utf-8")
    return Summary(files, total, size, reasons)


def _skewed(rng: random.Random, ads: int) -> int:
    # A Pareto tail of index 1.1 has mean 11, and below the cap mean 6 or so, hence the division.
    return max(1, min(LARGEST * ads, int(ads * rng.paretovariate(1.1) / 6)))


def _ad(rng: random.Random, identity: str, day: dt.date) -> dict[str, Any]:
    language = rng.choices(LANGUAGES, weights=(50, 20, 15, 15))[0]
    ad: dict[str, Any] = {
        "id": identity,
        "title": f"{rng.choice(language.titles)} {rng.choice(language.details)}".strip(),
        "company": {"name": f"{rng.choice(NAMES)} {rng.choice(FORMS)}", "size": int(10 ** rng.uniform(0.5, 5))},
        "location": {"country": rng.choice(language.countries), "city": rng.choice(CITIES)},
        "salary": _salary(rng, language),
        "description": " ".join(rng.choices(language.sentences, k=rng.randint(10, 16))),
        "tags": rng.sample(TAGS, rng.randint(0, 8)),
        "posted_at": f"{day}T{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}:00Z",
    }
    if rng.random() < 0.1:  # feeds omit fields
        del ad[rng.choice(("location", "salary", "tags", "posted_at"))]
    return ad


def _salary(rng: random.Random, language: _Language) -> dict[str, Any] | None:
    """A yearly range, an hourly one with cents, or, in two ads of five, nothing."""
    if rng.random() < 0.4:
        return None
    if rng.random() < 0.2:
        low = round(rng.uniform(12, 40), 2)
        return {"min": low, "max": round(low * 1.2, 2), "currency": language.currency, "period": "hour"}
    low_a_year = rng.randrange(24_000, 90_000, 500)
    high = low_a_year + rng.randrange(2_000, 60_000, 500)
    return {"min": low_a_year, "max": high, "currency": language.currency, "period": "year"}


def _break(lines: list[str], turn: int) -> tuple[bytes, str]:
    """Break a file in one of three ways; returns it, and what is wrong with it."""
    data = "".join(lines).encode()
    if turn % 3 == 0:
        return data[: -len(lines[-1].encode()) // 2], "the last line is truncated"
    if turn % 3 == 1:
        return gzip.compress(data, mtime=0), "the file is binary"
    ad = json.loads(lines[-1])
    del ad["title"]
    return "".join([*lines[:-1], json.dumps(ad) + "\n"]).encode(), "the last ad has no title"


NAMES = ("Alder", "Brightwater", "Cobalt", "Dovetail", "Eastgate", "Fernhill", "Granit", "Halcyon", "Ibex", "Juniper")
FORMS = ("Ltd", "GmbH", "SA", "Inc.", "SARL", "KK", "& Co", "Group")
CITIES = (
    "Lyon",
    "Zürich",
    "Montréal",
    "大阪",
    "Leeds",
    "Austin",
    "Graz",
    "Québec",
    "東京",
    "Toronto",
    "Köln",
    "Nantes",
)
TAGS = (
    "full time", "part time", "permanent", "contract", "remote", "hybrid", "night shift", "junior", "senior", "intern",
    "healthcare", "logistics", "software", "retail", "public sector", "education",
)  # fmt: skip

LANGUAGES = (
    _Language(
        ("US", "CA", "GB"), "USD",
        ("Staff Nurse", "Data Engineer", "Warehouse Associate", "Delivery Driver", "Primary School Teacher",
         "Line Cook", "Sales Manager", "Electrician", "Support Specialist", "Physical Therapist"),
        ("", "(m/f/d)", "- Night Shift", "- Remote", "II", "- Immediate Start", "(Part Time)"),
        ("You will work with a small team that looks after its customers and after each other.",
         "We offer a competitive salary, health insurance from the first day and thirty days of paid leave.",
         "At least two years of experience in a similar role are required, five are better.",
         "This position can be done fully remote or from one of our offices.",
         "You keep accurate records, report problems early and help your colleagues when it gets busy.",
         "A valid driver's licence and a clean record are needed for this job.",
         "Strong Python and SQL skills are a plus, curiosity is a must.",
         "Our warehouse runs three shifts a day, seven days a week, and pays a bonus for nights and weekends.",
         "We are an equal opportunity employer and welcome applications from everybody.",
         "Apply with a short CV; we answer every application within a week."),
    ),
    _Language(
        ("FR", "CA", "BE"), "EUR",
        ("Infirmière diplômée", "Développeur Python", "Chauffeur-livreur", "Préparateur de commandes", "Chef de projet",
         "Électricien du bâtiment", "Conseillère clientèle"),
        ("H/F", "- CDI", "- télétravail partiel", "(temps partiel)", "confirmé", ""),
        ("Vous rejoignez une équipe de douze personnes à taille humaine, au cœur de la ville.",
         "Nous proposons une mutuelle, des tickets restaurant et deux jours de télétravail par semaine.",
         "Une première expérience réussie dans un poste similaire est exigée.",
         "Rigueur, autonomie et goût du travail bien fait sont vos principaux atouts.",
         "Le poste est à pourvoir dès que possible, en contrat à durée indéterminée.",
         "Vous assurez le suivi des dossiers et la relation avec nos clients européens.",
         "Permis B obligatoire, déplacements fréquents à prévoir dans toute la région.",
         "Merci d'envoyer votre CV à jour ; l'été prochain, vous serez déjà des nôtres."),
    ),
    _Language(
        ("DE", "AT", "CH"), "EUR",
        ("Pflegefachkraft", "Softwareentwickler", "Lagermitarbeiter", "Verkäuferin", "Elektroniker",
         "Sachbearbeiter Einkauf", "Berufskraftfahrer"),
        ("(m/w/d)", "in Teilzeit", "für die Nachtschicht", "(Quereinsteiger willkommen)", ""),
        ("Wir suchen zum nächstmöglichen Zeitpunkt Verstärkung für unser Team.",
         "Sie bringen eine abgeschlossene Ausbildung und mehrjährige Berufserfahrung mit.",
         "Es erwarten Sie dreißig Tage Urlaub, flexible Arbeitszeiten und eine betriebliche Altersvorsorge.",
         "Zuverlässigkeit, Teamfähigkeit und gute Deutschkenntnisse setzen wir voraus.",
         "Die Stelle ist unbefristet, auf Wunsch arbeiten Sie zwei Tage in der Woche remote.",
         "Ihre Aufgaben: Beratung der Kunden, Pflege der Stammdaten, Überwachung der Lagerbestände.",
         "Führerschein der Klasse B wünschenswert, aber keine Bedingung.",
         "Wir freuen uns auf Ihre aussagekräftige Bewerbung mit Gehaltsvorstellung."),
    ),
    _Language(
        ("JP",), "JPY",
        ("看護師", "データエンジニア", "倉庫スタッフ", "営業マネージャー", "介護職員", "配送ドライバー", "調理師"),
        ("(正社員)", "(パート)", "リモート可", "夜勤あり", "未経験歓迎", ""),
        ("未経験の方も歓迎します。 研修制度が充実しており、先輩社員が丁寧に指導します。",
         "週休二日制、社会保険完備、交通費は全額支給します。",
         "チームで協力しながら、お客様に最高のサービスを提供する仕事です。",
         "リモート勤務 (remote) も相談に応じます。",
         "Python と SQL の実務経験が三年以上ある方を優遇します。",
         "勤務時間は九時から十八時まで、残業は月に十時間ほどです。",
         "応募は履歴書を添えてお送りください。 書類選考の結果は一週間以内にご連絡します。"),
    ),
)  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write made-up job ads as JSON Lines files, a folder a day.")
    parser.add_argument("out", type=Path, help="the folder to write to")
    parser.add_argument(
        "--files", type=int, default=200, help="how many files in all, bad ones included (default: 200)"
    )
    parser.add_argument("--ads", type=int, default=100, help="how many ads a file (default: 100)")
    parser.add_argument("--days", type=int, default=1, help="over how many days they are spread (default: 1)")
    parser.add_argument("--start", default="2020-01-01", help="the first day (default: 2020-01-01)")
    parser.add_argument("--seed", type=int, default=7, help="another seed writes other ads (default: 7)")
    parser.add_argument("--skew", action="store_true", help="most files smaller, a few many times as large")
    parser.add_argument("--bad", type=int, default=2, help="how many files are broken (default: 2)")
    args = parser.parse_args()
    made = generate(**vars(args))
    print(
        f"{made.ads} ads in {made.files} files ({len(made.bad)} bad), {made.bytes / 1e6:.1f} MB, are in {args.out}; "
        f"now: shardkit run pipeline.yaml"
    )


if __name__ == "__main__":
    main()
