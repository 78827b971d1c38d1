"""JSON files that hold a whole data set: captions of COCO and Karpathy's splits, questions of VQAv2, OK-VQA,
TextVQA and VizWiz.

    COCO        captions_train2017.json   {"images": [{"id", "file_name"}],
                                           "annotations": [{"image_id", "caption"}]}
    Karpathy    dataset_flickr30k.json    {"images": [{"filename", "split", "sentences": [{"raw"}]}]}
    VQA         *questions.json           {"questions": [{"question_id", "image_id", "question"}]}
                *annotations.json         {"annotations": [{"question_id", "answers": [{"answer"}]}]}
    TextVQA     TextVQA_0.5.1_val.json    {"data": [{"question_id", "image_id", "question", "answers"}]}
    VizWiz      val.json                  [{"image", "question", "answers": [{"answer"}]}]
    and others  captions.json             [{"image", "caption"}], {"1.jpg": "a dog", "2.jpg": ["cat", "cats"]}

Each is read whole: COCO's training captions, 95 MB on disk, take 0.4 GB for a few seconds. Which form a file
has is told by its name or its first words.
"""
import os
import re
from dataclasses import dataclass

from data import question_prompt
from kit.files import BadInput, BadItem, open_file, read_json
from kit.sources.base import (
    check_caption, first_of, Item, LIMIT_JSON, PICTURE_KEYS, TEXT_KEYS, usual_answer)
from kit.sources.decode import is_picture
from kit.sources.finding import Finder, split_in
from kit.sources.lists import rows_to_items


# ---------------------------------------------------------------------------------------------
# Which files hold what

def head_of(file):
    """The first 16 KiB of a file, as text."""
    with open_file(file, LIMIT_JSON) as f:
        return f.read(1 << 14).decode('utf-8-sig', 'replace')


def holds(head, *keys):
    return any(re.search(f'"{key}"\\s*:', head, re.IGNORECASE) for key in keys)


def json_files(place):
    """The .json files that a path stands for: itself; or those in the folder, or in its folder `annotations`,
    but for those that lie beside a picture of their name."""
    if not place.is_folder:
        return [place.path] if place.path.lower().endswith('.json') and os.path.isfile(place.path) else []
    folders = [place.path, *(place.at(top) for top in place.tops if top.lower() == 'annotations')]
    beside = {os.path.splitext(name)[0] for name in place.tops if is_picture(name)}
    found = [os.path.join(folder, name) for folder in folders for name in sorted(os.listdir(folder))
             if name.lower().endswith('.json') and not name.startswith('.') and name[:-5] not in beside]
    return [path for path in found if os.path.isfile(path)]


def find_captions(place):
    """[file] of captions, of COCO, Karpathy or one of the simple forms. COCO's other files, instances_*.json,
    are none."""
    found = []
    for file in json_files(place):
        name, head = os.path.basename(file).lower(), head_of(file)
        rows = head.lstrip().startswith('[') and holds(head, *PICTURE_KEYS) and holds(head, *TEXT_KEYS)
        said = name.startswith('captions') or holds(head, 'sentences') or rows or not place.is_folder
        if said and not holds(head, 'question'):
            found.append(file)
    return found


def is_questions(file):
    return holds(head_of(file), 'question')


def is_answers(file):
    """Whether it holds the answers to questions that stand in another file."""
    head = head_of(file)
    return holds(head, 'question_id') and not holds(head, 'question')


def find_questions(place):
    """[(questions file, annotations file or None)]"""
    return [(file, answers_of(file)) for file in json_files(place) if is_questions(file)]


def answers_of(file):
    """The annotations file beside a file of questions: the one whose name differs by the word,
    v2_OpenEnded_…_questions.json and v2_…_annotations.json, or the only one there is. None where there is
    none."""
    def plain(name):
        return re.sub('questions?|annotations?|openended|multiplechoice|[^a-z0-9]', '', name.lower())

    folder, name = os.path.split(file)
    beside = [os.path.join(folder, other) for other in sorted(os.listdir(folder or '.'))
              if other.lower().endswith('.json') and not other.startswith('.')]
    beside = [other for other in beside if os.path.isfile(other) and is_answers(other)]
    fitting = [other for other in beside if plain(os.path.basename(other)) == plain(name)]
    return fitting[0] if fitting else beside[0] if len(beside) == 1 else None


# ---------------------------------------------------------------------------------------------
# Captions

def read_captions(found, place):
    """[file] -> list of Items, one a caption; several belong to the same picture. Raises BadInput."""
    if place.spec.images and not os.path.isdir(place.spec.images):
        raise BadInput(f'--images={place.spec.images}: no such folder')
    items = []
    for file in found:
        content = read_json(file, LIMIT_JSON)
        if isinstance(content, dict) and isinstance(content.get('images'), list):
            if isinstance(content.get('annotations'), list):
                items += coco_items(content, file, place)
            else:
                items += karpathy_items(content['images'], file, place)
            continue
        if isinstance(content, dict):  # {picture: caption}
            content = [{'file_name': name, 'text': text} for name, text in content.items()
                       if isinstance(text, (str, list))]
        if not isinstance(content, list) or not content:
            raise BadInput(f'{file}: not a captions file')
        split = split_in(os.path.basename(file)) if place.is_folder else None
        rows = objects(content, f'{file}: entry')
        items += rows_to_items(rows, split, finder_of(file, place), place.report)
    return items


def objects(entries, where):
    """[(where, fields)] of a list that should hold objects; what is none has no fields."""
    return [(f'{where} {number}', entry if isinstance(entry, dict) else {})
            for number, entry in enumerate(entries, 1)]


def finder_of(file, place):
    """COCO keeps the pictures of captions_train2017.json in train2017/, and does not say so."""
    folder = place.spec.images or (place.root if place.is_folder else os.path.dirname(file)) or '.'
    beside = re.sub('^captions_', '', os.path.splitext(os.path.basename(file))[0])
    return Finder(*(path for path in (folder, os.path.join(folder, beside)) if os.path.isdir(path)))


def coco_items(content, file, place):
    """COCO's {"images", "annotations"} -> list of Items."""
    find, split = finder_of(file, place), split_in(os.path.basename(file)) if place.is_folder else None
    paths, items = {}, []  # picture's id -> path, or what is wrong with it
    for entry in content['images']:
        number, name = (entry.get('id'), entry.get('file_name')) if isinstance(entry, dict) else (None, None)
        if isinstance(number, (int, str)) and isinstance(name, str) and name:
            try:
                paths[number] = find(name)
            except BadItem as e:
                paths[number] = e
    for position, entry in enumerate(content['annotations']):
        entry = entry if isinstance(entry, dict) else {}
        where = f'{file}: annotation {entry.get("id", f"number {position}")}'
        number = entry.get('image_id')
        path = paths.get(number) if isinstance(number, (int, str)) else None
        try:
            text = check_caption(entry.get('caption'), where)
            if path is None:
                raise BadItem('no such image id', where)
            if isinstance(path, BadItem):
                raise BadItem(path.kind, path.where)
            items.append(Item(path, text, split or 'train', text, where))
        except BadItem as e:
            place.report.add(BadItem(e.kind, where, e.where))
    return items


def karpathy_items(images, file, place):
    """Karpathy's images, each with its split and sentences -> list of Items."""
    rows = objects(images, f'{file}: image')
    for _, entry in rows:  # of COCO: "filepath": "val2014"
        if isinstance(entry.get('filepath'), str) and isinstance(entry.get('filename'), str):
            entry['filename'] = os.path.join(entry.pop('filepath'), entry['filename'])
    return rows_to_items(rows, None, finder_of(file, place), place.report)


# ---------------------------------------------------------------------------------------------
# Questions

@dataclass
class Question:
    """A question about a picture, and what people answered (none where the answers are not published).

    number: its id, as it stands in the file; path: of the picture; where: file and number.
    """
    number: object
    path: str
    question: str
    answers: list
    where: str

    @property
    def usual(self):
        """The most frequent of the answers; '' where there are none."""
        return usual_answer(self.answers) or ''


def read_questions(questions, annotations, find, report):
    """A file of questions in one of the published forms -> list of Question; what is wrong goes into the
    report.

    annotations: the file that holds the answers, if they are not in the first; find: a finding.Finder of the
    pictures. Ids may be numbers, texts or hexadecimal, and pictures ids or file names. Raises BadInput.
    """
    content, answers = read_json(questions, LIMIT_JSON), {}
    if annotations:
        answered = read_json(annotations, LIMIT_JSON)
        answered = answered.get('annotations') if isinstance(answered, dict) else answered
        if not isinstance(answered, list):
            raise BadInput(f'{annotations}: has no list "annotations"')
        for number, entry in enumerate(answered, 1):
            try:
                answers[str(entry['question_id'])] = answers_in(entry)
            except (KeyError, TypeError, AttributeError) as e:
                report.add(BadItem('not an annotation', f'{annotations}: annotation {number}', str(e)))
    hint = content.get('data_subtype') if isinstance(content, dict) else ''
    if isinstance(content, dict):
        content = first_of(content, ('questions', 'data', 'annotations'))
    if not isinstance(content, list):
        raise BadInput(f'{questions}: has no list "questions"')
    found = []
    for position, entry in enumerate(content, 1):
        where = f'{questions}: question {position}'
        try:
            number = entry.get('question_id', entry.get('image', position))  # VizWiz: one question a picture
            asked = check_caption(entry['question'], where)
            picture = first_of(entry, ('image', 'image_id', *PICTURE_KEYS))
            path = find.by_id(picture, hint if isinstance(hint, str) else '')
            said = answers_in(entry) or answers.get(str(number), [])
            found.append(Question(number, path, asked, said, where))
        except BadItem as e:
            report.add(BadItem(e.kind, where, e.message or e.where))
        except (KeyError, TypeError, AttributeError) as e:
            report.add(BadItem('not a question', where, str(e)))
    return found


def answers_in(entry):
    """["circle", …] of an entry's "answers", texts or objects, or of its "multiple_choice_answer"."""
    one = first_of(entry, ('answer', 'multiple_choice_answer'))
    answers = entry.get('answers') or ([] if one is None else [one])
    return [str(a['answer']) if isinstance(a, dict) else str(a) for a in answers]


def read_question_items(found, place):
    """[(questions file, annotations file or None)] -> list of Items: 'Question: … Answer:' is given, the
    usual answer learned."""
    if place.spec.images and not os.path.isdir(place.spec.images):
        raise BadInput(f'--images={place.spec.images}: no such folder')
    items = []
    for file, annotations in found:
        find = place.finder(place.root if place.is_folder else os.path.dirname(file) or '.')
        split = split_in(os.path.basename(file)) if place.is_folder else None
        for q in read_questions(file, annotations, find, place.report):
            if q.usual:
                prompt = question_prompt(q.question)
                items.append(Item(q.path, q.usual, split or 'train', '', q.where, prompt=prompt))
            else:
                place.report.add(BadItem('no answer', q.where))
    return items
