"""Talks to a server with the official Anthropic client, as its users do. Usage: anthropic_client.py URL"""

import asyncio
import sys

import anthropic

URL = sys.argv[1]
client = anthropic.Anthropic(base_url=URL, api_key="unused", max_retries=0)
# A question whose answer the model is sure of: no rounding changes it.
QUESTION = [{"role": "user", "content": "Complete the sentence: The capital of France is"}]
# Newer clients have no argument for it; the protocol has.
GREEDY = {"extra_body": {"temperature": 0}}
STORY = [{"role": "user", "content": "Tell me a story."}]


def models():
    page = client.models.list()
    name = next(model.id for model in page.data if model.id.startswith("smollm2"))
    assert client.models.retrieve(name).display_name == name
    return name


def message(model):
    answer = client.messages.create(model=model, max_tokens=32, **GREEDY, messages=QUESTION)
    text = answer.content[0].text
    assert "Paris" in text, answer
    assert answer.role == "assistant" and answer.stop_reason in ("end_turn", "max_tokens"), answer
    assert answer.usage.output_tokens <= 32, answer
    counted = client.messages.count_tokens(model=model, messages=QUESTION).input_tokens
    assert counted == answer.usage.input_tokens + answer.usage.cache_read_input_tokens, (counted, answer.usage)
    return text


def stream(model, whole):
    with client.messages.stream(model=model, max_tokens=32, **GREEDY, messages=QUESTION) as events:
        pieces = list(events.text_stream)
        final = events.get_final_message()
    assert "".join(pieces) == whole == final.content[0].text, (pieces, whole, final)
    assert len(pieces) > 3 and final.stop_reason in ("end_turn", "max_tokens"), final
    assert final.usage.output_tokens > 3, final


def system_stop_and_prefill(model):
    answer = client.messages.create(
        model=model,
        max_tokens=60,
        **GREEDY,
        system="You count.",
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Count from one to ten in words."}]},
            {"role": "assistant", "content": "One, two, three, four,"},
        ],
        stop_sequences=["seven"],
    )
    assert answer.stop_reason == "stop_sequence" and answer.stop_sequence == "seven", answer
    assert "five" in answer.content[0].text and "seven" not in answer.content[0].text, answer


def mistakes(model):
    try:
        client.messages.create(model="nobody", max_tokens=5, messages=QUESTION)
        raise AssertionError("an unknown model answered")
    except anthropic.NotFoundError as error:
        assert error.body["error"]["type"] == "not_found_error", error.body
    try:
        tool = {"name": "now", "input_schema": {"type": "object"}}
        client.messages.create(model=model, max_tokens=5, messages=QUESTION, tools=[tool])
        raise AssertionError("tools were ignored")
    except anthropic.BadRequestError as error:
        assert "tools" in str(error), error


async def at_once(model):
    client = anthropic.AsyncAnthropic(base_url=URL, api_key="unused", max_retries=0)
    asks = [client.messages.create(model=model, max_tokens=20, messages=STORY) for _ in range(8)]
    answers = await asyncio.gather(*asks)
    assert all(answer.content[0].text for answer in answers), answers


model = models()
whole = message(model)
stream(model, whole)
system_stop_and_prefill(model)
mistakes(model)
asyncio.run(at_once(model))
print("all good")
