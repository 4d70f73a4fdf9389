"""How an answer is written, whatever the reference says: repetition, and refusals."""

import re

_PIECES = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]|\w+|[^\w\s]"
)
_RUN = 4

# How assistants decline, in languages that instruction data often is in. In lower case, with plain apostrophes.
REFUSALS = (
    "i'm sorry, but", "i am sorry, but", "i'm sorry, i can", "sorry, but i can", "sorry, i can't", "sorry, i cannot",
    "i apologize, but", "i apologise, but", "i can't help with", "i cannot help with", "i can't assist",
    "i cannot assist", "i'm unable to", "i am unable to", "i'm not able to", "i am not able to", "i won't be able to",
    "i can't provide", "i cannot provide", "i can't fulfill", "i cannot fulfill", "i can't answer", "i cannot answer",
    "i can't comply", "i cannot comply", "i must decline", "i cannot in good conscience", "as an ai",
    "as a language model",
    # German
    "es tut mir leid, aber", "tut mir leid, aber", "ich kann dabei nicht helfen", "ich kann ihnen dabei nicht",
    "ich kann dir dabei nicht", "ich kann diese frage nicht", "dabei kann ich nicht helfen", "als ki-", "als ki ",
    "als sprachmodell",
    # French
    "je suis désolé", "désolé, mais", "je ne peux pas vous aider", "je ne peux pas t'aider", "je ne peux pas répondre",
    "je ne suis pas en mesure", "en tant qu'ia", "en tant qu'intelligence artificielle",
    "en tant que modèle de langage",
    # Spanish
    "lo siento, pero", "lo siento, no puedo", "no puedo ayudar", "no puedo responder", "no puedo proporcionar",
    "como modelo de lenguaje", "como inteligencia artificial",
    # Portuguese
    "sinto muito, mas", "desculpe, mas", "não posso ajudar", "não posso responder", "como modelo de linguagem",
    # Italian
    "mi dispiace, ma", "non posso aiutar", "non posso rispondere", "come modello linguistico",
    # Dutch
    "het spijt me, maar", "ik kan u niet helpen", "ik kan je niet helpen", "als taalmodel",
    # Polish
    "przykro mi, ale", "nie mogę pomóc", "jako model językowy",
    # Russian
    "извините, но", "к сожалению, я не могу", "я не могу помочь", "я не могу ответить", "как языковая модель",
    # Turkish
    "üzgünüm, ama", "üzgünüm, ancak", "yardımcı olamam", "bir yapay zeka olarak",
    # Arabic
    "آسف، لكن", "عذرًا، لا", "لا أستطيع مساعدت", "لا يمكنني مساعدت", "كنموذج لغ",
    # Hindi
    "मुझे खेद है", "मैं मदद नहीं कर सकता", "एक ai के रूप में",
    # Chinese, Japanese, Korean
    "很抱歉", "抱歉,我", "抱歉，我", "对不起,我", "对不起，我", "對不起，我",
    "我无法", "我無法", "我不能提供", "作为一个人工智能",
    "作为一个ai", "作為一個人工智慧", "作为一种人工智能",
    "申し訳ありませんが", "申し訳ございませんが", "お答えできません", "お手伝いできません",
    "aiとして", "죄송하지만", "죄송합니다", "도와드릴 수 없", "답변할 수 없", "답변드릴 수 없",
)  # fmt: skip
_BEGINNING = 200  # characters of an answer in which a refusal stands


def repetition(text: str) -> float:
    """The share of an answer's runs of 4 words that stood in it before; 0 of one with fewer words.

    Seq-rep-4 of Welleck et al. 2020 ("Neural Text Generation with Unlikelihood Training", arXiv 1908.04319, section
    6.1): 1 minus the different runs over all runs. There words are a model's tokens; here they are words and marks, and
    single characters of scripts without spaces, so that models with other tokenizers compare.
    """
    pieces = _PIECES.findall(text.casefold())
    runs = list(zip(*(pieces[i:] for i in range(_RUN)), strict=False))
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0


def refusal(text: str) -> float:
    """1 where one of ``REFUSALS`` stands in the first 200 characters of an answer; else 0.

    A list of phrases, so that a refusal in other words is missed, and a quoted one counts.
    """
    beginning = " ".join(text[: 2 * _BEGINNING].lower().replace("’", "'").split())[:_BEGINNING]
    return float(any(phrase in beginning for phrase in REFUSALS))
