"""Drives the chat page in Chromium, as a user does.

Usage: page_browser.py URL PID_OF_THE_SERVER SECOND_MODEL FOLDER_FOR_SCREENSHOTS

The server is killed at the end: the page has to say so.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import time
import urllib.request

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from fault_proxy import FaultProxy, refusal, stream

URL, PID, SECOND = sys.argv[1], int(sys.argv[2]), sys.argv[3]
SHOTS = pathlib.Path(sys.argv[4])
DOWNLOADS = pathlib.Path(tempfile.mkdtemp())
# A busy machine is slow; what is waited for comes at last, or the test fails.
PATIENCE = 120

HOSTILE = """<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>

[click](javascript:window.hacked=1) ![x](https://example.invalid/track.png) <a href="javascript:window.hacked=1">x</a>

```html
<script>window.hacked=1</script>
```
<svg onload=window.hacked=1> <iframe srcdoc="<script>parent.hacked=1</script>"></iframe>"""

RICH = """## Sorting in Rust

A `Vec<T>` sorts **in place**. There are two ways, and _both_ take `O(n log n)`:

1. `sort` is stable: equal elements keep their order.
2. `sort_unstable` needs no memory of its own.
   - It is usually faster.
   - See [the documentation](https://doc.rust-lang.org/std/vec/struct.Vec.html).

```rust
let mut words = vec!["pear", "apple", "fig"];
words.sort_by_key(|word| (word.len(), *word)); // by length first, and this line is long enough to scroll
assert_eq!(words, ["fig", "pear", "apple"]);
```

| method | stable | memory |
|---|:-:|--:|
| `sort` | yes | n / 2 |
| `sort_unstable` | no | 0 |

> Measure before you choose."""


def start():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--disable-background-networking", "--no-first-run", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1280,900")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(DOWNLOADS)})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    return webdriver.Chrome(options=options, service=service)


driver = start()
visited = []


def wait(what, is_true):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = is_true()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited too long: {what}; the page shows: {driver.find_element(By.TAG_NAME, 'body').text}")


def find(selector):
    return driver.find_element(By.CSS_SELECTOR, selector)


def all_of(selector):
    return driver.find_elements(By.CSS_SELECTOR, selector)


def text_of(selector):
    """Of the last match, in one step: the page may replace it at any time."""
    return driver.execute_script("return [...document.querySelectorAll(arguments[0])].at(-1)?.innerText ?? ''", selector)


def visit(url):
    visited.append(url)
    driver.get(url)
    wait("the models are listed", lambda: find("#model").get_attribute("value"))


def type_question(text):
    question = find("#question")
    question.clear()
    question.send_keys(text)


def ask(text):
    type_question(text)
    find("#question").send_keys(Keys.ENTER)


def wait_answered():
    """Until nothing is being written, and the last message is an answer."""
    wait("the answer ends", lambda: not all_of("[aria-busy]") and all_of(".message.assistant:last-child .foot button, .failure"))


def answer_text():
    return text_of(".message.assistant .markdown")


def click(selector):
    """What appears under the pointer only is clicked as a keyboard or a screen reader would."""
    driver.execute_script("[...document.querySelectorAll(arguments[0])].at(-1).click()", selector)


def set_sampling(**values):
    click("#open-settings")
    for name, value in values.items():
        field = find(f"#sampling-{name}")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.DELETE, value)
    find("#settings").send_keys(Keys.ESCAPE)
    wait("the settings close", lambda: not all_of("dialog[open]"))


def metrics(url=URL):
    with urllib.request.urlopen(url + "/metrics") as response:
        return response.read().decode()


def metric(name, label=""):
    lines = [line for line in metrics().splitlines() if line.startswith(name) and label in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def streams():
    driver.execute_script(
        """window.lengths = new Set();
        const read = () => lengths.add([...document.querySelectorAll('.assistant .markdown')].at(-1)?.textContent.length);
        new MutationObserver(read).observe(document.getElementById('messages'), {subtree: true, childList: true});"""
    )
    set_sampling(temperature="0", max_tokens="40")
    ask("Complete the sentence: The capital of France is")
    wait_answered()
    assert "Paris" in answer_text(), answer_text()
    lengths = driver.execute_script("return lengths.size")
    assert lengths >= 3, f"the answer came in {lengths} pieces"
    shown = text_of(".stats")
    for part in ("tokens/s", "first token after", "prompt ", "answer ", "seed "):
        assert part in shown, shown
    assert "Paris" in driver.execute_script("return document.getElementById('announcer').textContent")
    assert driver.switch_to.active_element.get_attribute("id") == "question", "the focus stays in the question"


def is_cut_by_length():
    set_sampling(max_tokens="4")
    ask("Tell me a story.")
    wait_answered()
    assert "Cut off" in text_of(".assistant .note"), text_of(".message.assistant:last-child")
    assert "answer 4 tokens" in text_of(".stats"), text_of(".stats")
    set_sampling(max_tokens="")


def stops():
    aborted = metric("vllm:request_success_total", 'finished_reason="abort"')
    ask("Write a very long story about a dragon and a lighthouse.")
    wait("it begins to answer", lambda: len(answer_text()) > 20 and all_of("[aria-busy]"))
    assert metric("vllm:num_requests_running") >= 1
    find("body").send_keys(Keys.ESCAPE)
    wait_answered()
    assert "Stopped" in text_of(".assistant .note"), text_of(".message.assistant:last-child")
    assert len(answer_text()) > 20, "what had come is kept"
    wait("the server stops too", lambda: metric("vllm:num_requests_running") == 0)
    wait("it is counted", lambda: metric("vllm:request_success_total", 'finished_reason="abort"') == aborted + 1)


def edits_and_resends():
    set_sampling(max_tokens="24")
    questions = len(all_of(".message.user"))
    assert questions == 3, questions
    driver.execute_script("document.querySelector('[data-action=edit]').click()")
    area = find("textarea.edit")
    assert "capital of France" in area.get_attribute("value")
    area.send_keys(Keys.CONTROL, "a")
    area.send_keys("Complete the sentence: The capital of Italy is" + Keys.ENTER)
    wait_answered()
    assert len(all_of(".message")) == 2, "what came after the changed question is gone"
    assert "Rome" in answer_text(), answer_text()
    click("#notice-action")
    wait("the old conversation is back", lambda: len(all_of(".message.user")) == 3)
    assert "France" in find(".message.user .body").text
    # The first answer again: what came after it goes.
    driver.execute_script("document.querySelector('[data-action=regenerate]').click()")
    wait_answered()
    assert len(all_of(".message")) == 2 and "Paris" in answer_text(), answer_text()
    driver.execute_script("document.querySelector('.assistant [data-action=copy]').click()")
    wait("it is copied", lambda: find(".assistant [data-action=copy]").text in ("Copied", "Copy"))


def switches_model():
    first = find("#model").get_attribute("value")
    Select(find("#model")).select_by_value(SECOND)
    ask("Say hello.")
    wait_answered()
    assert text_of(".assistant .who") == SECOND
    loaded = "return [...document.querySelectorAll('optgroup[label=Loaded] option')].map((option) => option.value)"
    wait("both are loaded", lambda: {first, SECOND} <= set(driver.execute_script(loaded)))
    Select(find("#model")).select_by_value(first)


def keeps_conversations():
    before = [message.text for message in all_of(".message .body")]
    driver.refresh()
    wait("the models are listed", lambda: find("#model").get_attribute("value"))
    assert [message.text for message in all_of(".message .body")] == before, "a reload loses nothing"
    click("#export")
    exported = wait("the file is there", lambda: next(DOWNLOADS.glob("shimmy-conversations-*.json"), None))
    click("#new-chat")
    assert not all_of(".message") and find("#welcome").is_displayed()
    click(".remove")
    wait("it is deleted", lambda: not all_of(".conversation"))
    find("#import-file").send_keys(str(exported))
    wait("it is imported", lambda: "Imported 1" in text_of("#notice-text"))
    click(".conversation")
    assert [message.text for message in all_of(".message .body")] == before, "a file holds all of it"
    click(".message.user [data-action=remove]")
    assert len(all_of(".message")) == len(before) - 2
    click("#notice-action")
    assert len(all_of(".message")) == len(before)
    # A conversation with a model that isn't here.
    value = json.loads(exported.read_text())
    value["conversations"][0].update(id="elsewhere", model="no-such-model")
    exported.write_text(json.dumps(value))
    find("#import-file").send_keys(str(exported))
    wait("it is imported", lambda: len(all_of(".conversation")) == 2)
    driver.execute_script("document.querySelector('.conversation:not([aria-current])').click()")
    ask("Is anybody there?")
    wait_answered()
    shown = text_of(".failure")
    assert "no-such-model" in shown and "Pick another model" in shown and "Try again" in shown, shown
    Select(find("#model")).select_by_value(SECOND)
    click(".failure [data-action=regenerate]")
    wait_answered()
    assert not all_of(".failure") and answer_text()


def tells_what_went_wrong(proxy):
    visit(proxy.url)
    set_sampling(temperature="0", max_tokens="24")
    loading = refusal(503, "the model is still loading", "model_loading", retry_after=1)
    proxy.faults = [loading, loading]
    ask("Complete the sentence: The capital of France is")
    wait("it says what it waits for", lambda: "still loading" in text_of(".wait"))
    wait_answered()
    assert "Paris" in answer_text() and not all_of(".failure")

    proxy.faults = [refusal(429, "the queue is full", "queue_full", retry_after=7)]
    ask("And of Spain?")
    wait_answered()
    assert "queue is full" in text_of(".failure") and "in 7 s" in text_of(".failure"), text_of(".failure")
    click(".failure [data-action=regenerate]")
    wait_answered()
    assert not all_of(".failure") and answer_text()

    proxy.faults = [refusal(401, "this server wants a key", "invalid_api_key")]
    ask("And of Italy?")
    wait("it asks for a key", lambda: all_of("#key-dialog[open]"))
    assert "wants a key" in text_of("#key-why")
    find("#key").send_keys("a-secret" + Keys.ENTER)
    wait("it asks again", lambda: proxy.asked[-1][1]["authorization"] == "Bearer a-secret")
    wait_answered()
    assert not all_of(".failure")
    kept = driver.execute_script("return JSON.stringify(localStorage) + document.cookie")
    assert "a-secret" not in kept and "Italy" in kept
    assert "a-secret" in driver.execute_script("return JSON.stringify(sessionStorage)")

    proxy.faults = [stream(["The first half ", "of an answer"], ends=False)]
    ask("And of Portugal?")
    wait_answered()
    assert "first half of an answer" in answer_text()
    assert "broke off" in text_of(".failure") or "lost" in text_of(".failure"), text_of(".failure")
    sent = proxy.asked[-1][0]
    assert [message["role"] for message in sent["messages"]] == ["user", "assistant"] * 3 + ["user"], sent
    assert sent["stream"] and sent["temperature"] == 0 and sent["max_tokens"] == 24 and "top_k" not in sent, sent


def shows_hostile_answers_as_text(proxy):
    click("#new-chat")
    proxy.faults = [stream(re.findall(r"(?s).{1,7}", HOSTILE))]
    ask("Attack!")
    wait_answered()
    assert driver.execute_script("return window.hacked") is None
    assert not all_of("#messages img, #messages script, #messages svg, #messages iframe, #messages [onload], #messages [onerror]")
    assert all(link.get_attribute("href").startswith("https://") for link in all_of("#messages a"))
    assert "onerror" in answer_text() and "javascript:" in answer_text()


def names_everything():
    """Every control that is shown has a name for a screen reader, and the parts of the page are landmarks."""
    # What lies below an open dialog, or beside an open list, can't be reached, so it has none.
    root = "dialog[open]" if all_of("dialog[open]") else "body"
    for control in all_of(f"{root} :is(button, select, textarea, input:not([type=file])):not([inert] *)"):
        if control.is_displayed():
            assert control.accessible_name, control.get_attribute("outerHTML")
    for tag in ("nav", "header", "main", "footer"):
        assert len(all_of(tag)) == 1, tag
    assert find("html").get_attribute("lang") == "en"
    assert find("#messages").get_attribute("aria-live") is None, "only whole answers are read out"


def width(pixels, height, is_phone):
    device = {"width": pixels, "height": height, "deviceScaleFactor": 1, "mobile": is_phone}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)


def looks(proxy):
    """Screenshots of both themes at two widths, for people to look at; and nothing is wider than the window."""
    for theme in ("light", "dark"):
        for pixels, height in ((1280, 860), (360, 740)):
            width(pixels, height, pixels < 500)
            visit(proxy.url)
            while find("html").get_attribute("data-theme") != theme:
                click("#theme")

            def shot(name):
                time.sleep(0.3)
                wide = driver.execute_script("return document.documentElement.scrollWidth")
                assert wide <= pixels, f"{name} is {wide} px wide in {pixels}"
                driver.save_screenshot(SHOTS / f"{theme}-{pixels}-{name}.png")

            click("#new-chat")
            shot("welcome")
            proxy.faults = [stream(re.findall(r"(?s).{1,12}", RICH))]
            ask("How do I sort a list of words in Rust? I would like the shortest ones first, please.")
            wait_answered()
            shot("answer-end")
            driver.execute_script("document.getElementById('scroller').scrollTop = 0")
            shot("answer")
            proxy.faults = [stream(["It depends on "], ends=False)]
            ask("And which one is faster?")
            wait_answered()
            shot("failure")
            driver.execute_script("document.querySelector('[data-action=edit]').click()")
            driver.execute_script("document.getElementById('scroller').scrollTop = 0")
            shot("edit")
            click("[data-action=cancelEdit]")
            click("#open-settings")
            names_everything()
            shot("settings")
            find("#settings").send_keys(Keys.ESCAPE)
            if pixels < 500:
                click("#open-sidebar")
                shot("sidebar")
                assert driver.switch_to.active_element.get_attribute("id") == "new-chat"
                find("#new-chat").send_keys(Keys.ESCAPE)
                assert driver.switch_to.active_element.get_attribute("id") == "open-sidebar"
            names_everything()
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def survives_the_server():
    visit(URL)
    click("#new-chat")
    set_sampling(temperature="1", max_tokens="")
    ask("Write a very long story about a dragon and a lighthouse.")
    wait("it begins to answer", lambda: len(answer_text()) > 20 and all_of("[aria-busy]"))
    os.kill(PID, signal.SIGKILL)
    wait_answered()
    assert re.search("lost|broke off", text_of(".failure")) and len(answer_text()) > 20, text_of(".failure")
    click(".failure [data-action=regenerate]")
    wait_answered()
    assert "could not be reached" in text_of(".failure"), text_of(".failure")


def check_logs():
    """Nothing on the console but the failures that the test asked for; nothing asked of anybody else."""
    for entry in driver.get_log("browser"):
        asked_for = entry["source"] == "network" and ("/v1/chat/completions" in entry["message"] or "/v1/models" in entry["message"])
        assert asked_for, entry
    requests = 0
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            requests += 1
            url = message["params"]["request"]["url"]
            # `chrome:` is the browser's own start page.
            own = [*(origin + "/" for origin in visited), f"blob:{URL}/", "chrome:", "data:,"]
            assert any(url.startswith(start) for start in own), url
    assert requests > 50, requests


try:
    visit(URL)
    names_everything()
    streams()
    is_cut_by_length()
    stops()
    edits_and_resends()
    switches_model()
    keeps_conversations()
    faulty = FaultProxy(URL)
    tells_what_went_wrong(faulty)
    shows_hostile_answers_as_text(faulty)
    looks(faulty)
    survives_the_server()
    check_logs()
finally:
    driver.quit()
    shutil.rmtree(DOWNLOADS, ignore_errors=True)
print("all good")
