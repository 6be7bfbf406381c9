"""Talks to a server with the official OpenAI client's asynchronous half. Usage: async_client.py URL"""

import asyncio
import sys

import openai

QUESTION = [{"role": "user", "content": "Complete the sentence: The capital of France is"}]
STORY = [{"role": "user", "content": "Tell me a story."}]


async def streamed(client, model):
    pieces = []
    stream = await client.chat.completions.create(
        model=model, messages=QUESTION, temperature=0, max_tokens=32, stream=True
    )
    async for chunk in stream:
        pieces += [choice.delta.content or "" for choice in chunk.choices]
    assert len(pieces) > 3, pieces
    return "".join(pieces)


async def is_cancelled(client, model):
    """A task that is cancelled leaves its stream, and the next request is none the worse."""
    begun = asyncio.Event()

    async def endless():
        stream = await client.chat.completions.create(
            model=model, messages=STORY, stream=True, extra_body={"ignore_eos": True}
        )
        async with stream:
            async for _ in stream:
                begun.set()

    task = asyncio.create_task(endless())
    await begun.wait()
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return
    raise AssertionError("the task ended by itself")


async def main():
    async with openai.AsyncOpenAI(base_url=sys.argv[1] + "/v1", api_key="unused", max_retries=0) as client:
        ids = [model.id async for model in client.models.list()]
        model = next(name for name in ids if name.startswith("smollm2"))
        texts = await asyncio.gather(*(streamed(client, model) for _ in range(8)))
        assert all("Paris" in text for text in texts), texts
        await is_cancelled(client, model)
        whole = await client.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=32)
        assert "Paris" in whole.choices[0].message.content, whole
        try:
            await client.chat.completions.create(model="no-such-model", messages=QUESTION)
        except openai.NotFoundError as error:
            assert error.code == "model_not_found", error
        else:
            raise AssertionError("an unknown model answered")


asyncio.run(main())
print("all good")
