"""Talks to a server with the official OpenAI client, as its users do. Usage: openai_client.py URL"""

import sys

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
leave_early(name)
assert stream_chat(name) == text
print(text)
print("all good")
