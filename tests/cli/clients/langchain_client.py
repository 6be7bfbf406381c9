"""Talks to a server with LangChain's ChatOpenAI. Usage: langchain_client.py URL"""

import asyncio
import json
import sys
import urllib.request

import openai
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

URL = sys.argv[1]
QUESTION = "Complete the sentence: The capital of France is"

with urllib.request.urlopen(URL + "/v1/models") as response:
    MODEL = next(m["id"] for m in json.load(response)["data"] if m["id"].startswith("smollm2"))


def chat(**settings):
    settings = {"model": MODEL, "temperature": 0, "max_tokens": 32, **settings}
    return ChatOpenAI(base_url=URL + "/v1", api_key="unused", max_retries=0, **settings)


llm = chat()
answer = llm.invoke(QUESTION)
assert "Paris" in answer.content, answer
assert answer.response_metadata["finish_reason"] in ("stop", "length"), answer
assert answer.usage_metadata["output_tokens"] > 1, answer.usage_metadata

pieces = list(chat(stream_usage=True).stream(QUESTION))
assert "".join(piece.content for piece in pieces) == answer.content, pieces
assert len([piece for piece in pieces if piece.content]) > 3, pieces
total = pieces[0]
for piece in pieces[1:]:
    total += piece
assert total.usage_metadata["output_tokens"] == answer.usage_metadata["output_tokens"], total

conversation = [
    SystemMessage("You are a poet."),
    HumanMessage("Hello."),
    AIMessage("Hi!"),
    HumanMessage("Tell me a long story."),
]
short = chat(max_tokens=4).invoke(conversation)
assert short.response_metadata["finish_reason"] == "length" and short.usage_metadata["output_tokens"] == 4, short

batch = llm.batch([QUESTION] * 4)
assert all("Paris" in one.content for one in batch), batch

chain = ChatPromptTemplate.from_messages([("human", "Complete the sentence: The capital of {country} is")]) | llm | StrOutputParser()
assert "Rome" in chain.invoke({"country": "Italy"})

stopped = chat(stop=["Paris"]).invoke(QUESTION)
assert "Paris" not in stopped.content, stopped


async def asynchronously():
    texts = await asyncio.gather(*(llm.ainvoke(QUESTION) for _ in range(3)))
    assert all("Paris" in text.content for text in texts), texts
    streamed = [piece.content async for piece in llm.astream(QUESTION)]
    assert "".join(streamed) == answer.content, streamed


asyncio.run(asynchronously())
try:
    chat(model="no-such-model").invoke(QUESTION)
except openai.NotFoundError as error:
    assert "no-such-model" in str(error), error
else:
    raise AssertionError("an unknown model answered")
print("all good")
