"""Talks to a server with the official OpenAI client, as its users do. Usage: openai_client.py URL"""

import asyncio
import base64
import math
import struct
import sys
import time

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="unused", max_retries=0)
# A question whose answer the model is sure of: no rounding changes it.
QUESTION = [{"role": "user", "content": "Complete the sentence: The capital of France is"}]
STORY = [{"role": "user", "content": "Tell me a story."}]


def models():
    ids = [model.id for model in client.models.list()]
    assert any(name.startswith("smollm2") for name in ids), ids
    name = next(name for name in ids if name.startswith("smollm2"))
    assert client.models.retrieve(name).id == name
    return name


def stream_chat(model):
    pieces, role, finish, usage = [], None, None, None
    stream = client.chat.completions.create(
        model=model,
        messages=QUESTION,
        temperature=0,
        max_tokens=32,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk", chunk
        for choice in chunk.choices:
            role = role or choice.delta.role
            pieces.append(choice.delta.content or "")
            finish = choice.finish_reason or finish
        usage = chunk.usage or usage
    text = "".join(pieces)
    assert "Paris" in text, text
    assert role == "assistant" and finish in ("stop", "length"), (role, finish)
    assert len(pieces) > 3, pieces
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and usage.completion_tokens <= 32, usage
    return text


def chat(model, streamed):
    whole = client.chat.completions.create(
        model=model, messages=QUESTION, temperature=0, max_tokens=32, logprobs=True, top_logprobs=2
    )
    assert whole.choices[0].message.content == streamed, (whole, streamed)
    content = whole.choices[0].logprobs.content
    assert content and len(content[0].top_logprobs) == 2, content
    # Greedy: the chosen token is the most probable one.
    assert content[0].token == content[0].top_logprobs[0].token, content[0]


def seeds(model):
    def answer(seed):
        reply = client.chat.completions.create(
            model=model, messages=STORY, temperature=1.5, seed=seed, max_completion_tokens=24
        )
        return reply.choices[0].message.content

    assert answer(1) == answer(1)
    assert len({answer(seed) for seed in (1, 2, 3, 4)}) > 1


def completion(model):
    reply = client.completions.create(model=model, prompt="One, two, three, four,", temperature=0, max_tokens=8)
    assert "five" in reply.choices[0].text, reply


def stop(model):
    reply = client.completions.create(
        model=model, prompt="One, two, three, four,", temperature=0, max_tokens=30, stop=["seven"]
    )
    assert "six" in reply.choices[0].text and "seven" not in reply.choices[0].text, reply
    assert reply.choices[0].finish_reason == "stop", reply


def refusals(model):
    try:
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    except openai.NotFoundError as error:
        assert error.code == "model_not_found", error
    else:
        raise AssertionError("an unknown model answered")
    try:
        client.chat.completions.create(
            model=model, messages=QUESTION, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    except openai.BadRequestError as error:
        assert error.param == "tools", error
    else:
        raise AssertionError("tools were ignored in silence")
    try:
        client.completions.create(model=model, prompt="x", max_tokens=10_000_000)
    except openai.BadRequestError as error:
        assert error.code == "context_length_exceeded", error
    else:
        raise AssertionError("the context was exceeded in silence")


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))


def embeddings(model):
    texts = [
        "A cat sleeps on the sofa.",
        "A kitten naps on the couch.",
        "The central bank raised its interest rates again.",
    ]
    # The client asks for base64 by itself unless it is told a format.
    answer = client.embeddings.create(model=model, input=texts)
    cat, kitten, bank = (entry.embedding for entry in answer.data)
    assert [entry.index for entry in answer.data] == [0, 1, 2] and len(cat) == len(bank) > 100, answer
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 15, answer.usage
    for pooling in ("mean", "last"):
        near = client.embeddings.create(model=model, input=texts, extra_body={"pooling": pooling})
        a, b, c = (entry.embedding for entry in near.data)
        assert abs(cosine(a, a) - sum(x * x for x in a)) < 1e-4, "they have the length 1"
        assert cosine(a, b) > cosine(a, c), (pooling, cosine(a, b), cosine(a, c))
    # The same text gives the same numbers, alone and to the last bit if that is asked for.
    exact = {"deterministic": True}
    one = client.embeddings.create(model=model, input=texts[0], encoding_format="float", extra_body=exact)
    many = client.embeddings.create(model=model, input=texts + texts[:1], encoding_format="float", extra_body=exact)
    assert one.data[0].embedding == many.data[0].embedding == many.data[3].embedding
    assert cosine(one.data[0].embedding, cat) > 0.999
    raw = client.embeddings.with_raw_response.create(
        model=model, input=texts[0], encoding_format="base64", dimensions=16, extra_body=exact
    )
    short = struct.unpack("<16f", base64.b64decode(raw.http_response.json()["data"][0]["embedding"]))
    assert cosine(short, one.data[0].embedding[:16]) > 0.9999 and abs(sum(x * x for x in short) - 1) < 1e-4, short
    try:
        client.embeddings.create(model=model, input="word " * 20_000)
    except openai.BadRequestError as error:
        assert error.code == "context_length_exceeded", error
    else:
        raise AssertionError("a text was cut in silence")


async def embeddings_at_once(model):
    several = openai.AsyncOpenAI(base_url=sys.argv[1] + "/v1", api_key="unused", max_retries=0)
    texts = [f"Text number {number} is about the sea." for number in range(16)]
    answers = await asyncio.gather(*(several.embeddings.create(model=model, input=text) for text in texts))
    together = await several.embeddings.create(model=model, input=texts)
    for alone, entry in zip(answers, together.data):
        assert cosine(alone.data[0].embedding, entry.embedding) > 0.999
    response = await several.responses.create(model=model, input="Hello!", max_output_tokens=8)
    assert response.output_text, response


def responses(model):
    question = QUESTION[0]["content"]
    whole = client.responses.create(
        model=model, input=question, temperature=0, max_output_tokens=32, metadata={"topic": "capitals"}
    )
    assert "Paris" in whole.output_text and whole.metadata == {"topic": "capitals"}, whole
    assert whole.status in ("completed", "incomplete") and whole.usage.output_tokens <= 32, whole
    assert whole.usage.output_tokens_details.reasoning_tokens == 0, whole.usage
    assert client.responses.retrieve(whole.id).output_text == whole.output_text
    items = list(client.responses.input_items.list(whole.id))
    assert [item.content[0].text for item in items] == [question], items

    # What was said is known without being repeated, and taken from the cache.
    more = client.responses.create(
        model=model,
        previous_response_id=whole.id,
        instructions="Answer in one word.",
        input=[{"role": "user", "content": [{"type": "input_text", "text": "And of Italy?"}]}],
        temperature=0,
        max_output_tokens=16,
    )
    assert more.previous_response_id == whole.id and more.usage.input_tokens > whole.usage.input_tokens, more

    kinds, deltas, final = [], [], None
    for event in client.responses.create(
        model=model, input=question, temperature=0, max_output_tokens=32, stream=True, store=False
    ):
        assert event.sequence_number == len(kinds), event
        kinds.append(event.type)
        if event.type == "response.output_text.delta":
            deltas.append(event.delta)
        if event.type in ("response.completed", "response.incomplete"):
            final = event.response
    assert "".join(deltas) == final.output_text == whole.output_text, (deltas, whole.output_text)
    assert kinds[:2] == ["response.created", "response.in_progress"] and len(deltas) > 3, kinds
    with client.responses.stream(model=model, input=question, temperature=0, max_output_tokens=32) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == whole.output_text

    client.responses.delete(whole.id)
    for gone in (
        lambda: client.responses.retrieve(whole.id),
        lambda: client.responses.retrieve(final.id),
    ):
        try:
            gone()
        except openai.NotFoundError as error:
            assert error.code == "response_not_found", error
        else:
            raise AssertionError("a response came back")
    for name, wrong in (
        ("background", {"background": True, "store": False}),
        ("tools", {"tools": [{"type": "web_search"}]}),
        ("previous_response_id", {"previous_response_id": whole.id}),
    ):
        try:
            client.responses.create(model=model, input=question, **wrong)
        except openai.BadRequestError as error:
            assert error.param == name, error
        else:
            raise AssertionError(f"{name} was ignored in silence")


def background(model):
    """A response that runs on without its client."""
    question = QUESTION[0]["content"]
    begun = client.responses.create(
        model=model, input=question, temperature=0, max_output_tokens=32, background=True
    )
    assert begun.status == "queued" and begun.background, begun
    while begun.status in ("queued", "in_progress"):
        time.sleep(0.05)
        begun = client.responses.retrieve(begun.id)
    assert begun.status in ("completed", "incomplete") and "Paris" in begun.output_text, begun
    assert client.responses.cancel(begun.id).status == begun.status

    # Its reader goes away after some events and comes back for the others.
    kinds, text, last = [], "", None
    stream = client.responses.create(
        model=model, input=question, temperature=0, max_output_tokens=32, background=True, stream=True
    )
    for event in stream:
        kinds.append(event.type)
        last = event.sequence_number
        if event.type == "response.created":
            name = event.response.id
        if event.type == "response.output_text.delta":
            text += event.delta
            break
    stream.close()
    assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"], kinds
    for event in client.responses.retrieve(name, stream=True, starting_after=last):
        last += 1
        assert event.sequence_number == last, event
        text += event.delta if event.type == "response.output_text.delta" else ""
    assert event.type in ("response.completed", "response.incomplete"), event
    assert text == event.response.output_text == begun.output_text, (text, begun.output_text)

    endless = client.responses.create(model=model, input=question, background=True, extra_body={"ignore_eos": True})
    for _ in range(2):
        assert client.responses.cancel(endless.id).status == "cancelled"
    plain = client.responses.create(model=model, input=question, max_output_tokens=2)
    try:
        client.responses.cancel(plain.id)
    except openai.BadRequestError as error:
        assert error.code == "not_in_background", error
    else:
        raise AssertionError("a response that had ended was cancelled")


def leave_early(model):
    """Closing a stream must not disturb the next request."""
    stream = client.chat.completions.create(model=model, messages=STORY, stream=True, max_tokens=2000)
    for _, _chunk in zip(range(3), stream):
        pass
    stream.close()


name = models()
text = stream_chat(name)
chat(name, text)
seeds(name)
completion(name)
stop(name)
refusals(name)
embeddings(name)
responses(name)
background(name)
asyncio.run(embeddings_at_once(name))
leave_early(name)
assert stream_chat(name) == text
print(text)
print("all good")
