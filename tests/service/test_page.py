"""The page in a real Chromium with a fake microphone, over the real engine: one browser, one service."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soxr
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from brewclip.service.app import build_app
from brewclip.service.local_engine import LocalEngine, load_searcher
from brewclip.service.settings import ServiceSettings
from brewclip.serving.index import ImageIndex
from tests.service.spoken_scenes import SpokenScenes, make_spoken_scenes

pytestmark = [pytest.mark.services, pytest.mark.slow]

NUM_IMAGES = 60
SPOKEN = (0, 1, 2, 3, 6, 11, 13, 14, 16, 17)  # short ones, as sound runs in real time
EXAMPLE = 3
SILENCE_SECONDS = 0.3  # until the microphone is open
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
expect.set_options(timeout=60_000)  # what waits for Whisper, on a busy machine


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SpokenScenes:
    made = make_spoken_scenes(tmp_path_factory.mktemp("page") / "world", NUM_IMAGES)
    examples = made.folder / "examples"
    examples.mkdir()
    made.speak(EXAMPLE, examples / "one.wav")
    (examples / "one.txt").write_text(made.caption(EXAMPLE))
    return made


@pytest.fixture(scope="module")
def site(world) -> Iterator[str]:
    """The address of the service, in a thread of this process."""
    settings = ServiceSettings(str(world.index), examples=str(world.folder / "examples"))
    app = build_app(LocalEngine(load_searcher(settings)), settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def microphone(tmp_path_factory) -> Path:
    """What the fake microphone hears: Chromium reads the file each time it is opened."""
    return tmp_path_factory.mktemp("microphone") / "heard.wav"


@pytest.fixture(scope="module")
def browser(microphone) -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium: the page is not opened in a browser (Debian package chromium)")
    flags = ["--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={microphone}%noloop"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield opened
        opened.close()


def open_page(
    browser: Browser,
    site: str,
    *,
    allowed: bool = True,
    without_device: bool = False,
    insecure: bool = False,
    viewport: dict[str, int] = WIDE,
    **settings: str,
) -> Page:
    """Open the page in a profile of its own; `page.errors` has what its scripts and the browser complain of."""
    context = browser.new_context(viewport=viewport, **settings)
    context.grant_permissions(["microphone"] if allowed else [])
    page = context.new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda line: line.type == "error" and page.errors.append(line.text))
    if without_device:  # the fake one cannot be unplugged
        missing = "async () => { throw new DOMException('', 'NotFoundError'); }"
        page.add_init_script(f"navigator.mediaDevices.getUserMedia = {missing}")
    address = site
    if insecure:  # a name that is not localhost, on http
        address = "http://images.test/"
        page.route(
            f"{address}**", lambda route: route.fulfill(response=route.fetch(url=site_url(site, route.request.url)))
        )
    page.goto(address)
    expect(page.locator("#examples-list button")).to_have_count(1)
    return page


def site_url(site: str, url: str) -> str:
    return site + url.split("/", 3)[3]


@pytest.fixture
def page(browser, site) -> Iterator[Page]:
    opened = open_page(browser, site)
    yield opened
    assert opened.errors == []
    opened.context.close()


def say(world: SpokenScenes, number: int, page: Page, microphone: Path) -> None:
    """Hold the button while the caption of an image is spoken, and until 0.7 s of silence follow."""
    world.speak(number, microphone, SILENCE_SECONDS)
    page.locator("#talk").hover()
    page.mouse.down()
    expect(page.locator("body.recording")).to_be_attached()
    quiet = """() => {
        const level = Number(document.getElementById("talk").style.getPropertyValue("--level"));
        if (level > 0.4) window.spokenAt = performance.now();
        return performance.now() - window.spokenAt > 700;
    }"""
    page.evaluate("window.spokenAt = NaN")
    page.wait_for_function(quiet, polling=50)
    page.mouse.up()
    expect(page.locator("body.recording")).not_to_be_attached()


def found(page: Page) -> list[str]:
    """Return the ids of the results that are shown, once a search has ended."""
    expect(page.locator("body:not(.busy) .tile").first).to_be_visible()
    return [source.split("/")[-2] for source in page.locator(".tile img").evaluate_all("all => all.map(i => i.src)")]


def search_words(page: Page, words: str) -> list[str]:
    page.get_by_role("textbox").fill(words)
    with page.expect_response("**/v1/search"):
        page.keyboard.press("Enter")
    expect(page.locator("#results-title")).to_have_text(f"\u201c{words}\u201d")
    return found(page)


def ids_by_number(world: SpokenScenes) -> list[str]:
    """Return the id of each image of the world."""
    index = ImageIndex.open(world.index)
    entries = [index.entry(row) for row in range(len(index))]
    return [entry.image_id for entry in sorted(entries, key=lambda entry: int(Path(entry.name).stem))]


# ---------------------------------------------------------------------- voice


@pytest.mark.timeout(900)  # ten times in real time, and Whisper
def test_ten_spoken_captions_find_their_images(page, world, microphone):
    ids = ids_by_number(world)
    for count, number in enumerate(SPOKEN, 1):
        say(world, number, page, microphone)
        expect(page.locator("#visit-list li")).to_have_count(count)
        heard = page.locator("#transcript").inner_text()
        assert ids[number] in found(page)[:10], f"{world.caption(number)!r} was heard as {heard!r}"
        assert page.get_by_role("textbox").input_value() == heard
    assert page.get_by_role("status").inner_text().startswith(f"24 of {NUM_IMAGES} images for: ")
    expect(page.locator("#heard-images img")).to_have_count(5)
    expect(page.locator("#sounded-images img")).to_have_count(5)


def test_the_transcript_is_edited_and_the_slider_moves_from_words_to_sound(page):
    """With an example, which needs no microphone."""
    page.locator("#examples-list button").click()
    expect(page.locator("#visit-list li")).to_have_count(1)
    assert page.url.endswith(f"#q={page.locator('#transcript').inner_text().replace(' ', '+')}")
    by_words = found(page)
    slider = page.get_by_role("slider")
    assert slider.get_attribute("aria-valuetext") == "0.00, chosen by the system"
    slider.focus()
    with page.expect_response("**/v1/search?*weight=4*"):
        page.keyboard.press("End")
    expect(page.locator("#automatic")).to_be_visible()
    with_sound = found(page)
    sounded = page.locator("#sounded-images img").evaluate_all("all => all.map(i => i.src.split('/').at(-2))")
    assert with_sound != by_words and len(set(sounded) & set(with_sound[:10])) >= 3
    expect(page.locator("#visit-list li")).to_have_count(1)  # the same query still
    page.get_by_role("button", name="Edit").click()
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.type("two motorcycles")  # in place of all that was selected
    page.keyboard.press("Enter")
    expect(page.locator("#visit-list li")).to_have_count(2)
    expect(page.locator("#channels")).to_be_hidden()
    expect(page.locator("#results-title")).to_have_text("\u201ctwo motorcycles\u201d")


def test_sound_is_resampled_without_aliases(page):
    """1 kHz stays as it was, 10 kHz is gone instead of coming back as 6 kHz; from both usual rates."""
    for rate in (44_100, 48_000):
        tones = np.stack([np.sin(2 * np.pi * hz * np.arange(rate // 5) / rate) for hz in (1_000, 10_000)]).astype(
            np.float32
        )
        resample = "([tone, rate]) => import('/sound.js').then(m => [...m.resample(new Float32Array(tone), rate)])"
        kept, removed = (np.array(page.evaluate(resample, [tone.tolist(), rate])) for tone in tones)
        inner = slice(200, -200)
        assert len(kept) == 3_200
        assert np.abs(kept - soxr.resample(tones[0], rate, 16_000)[: len(kept)])[inner].max() < 1e-3
        assert np.abs(removed)[inner].max() < 1e-3


# ---------------------------------------------------------------------- no voice


@pytest.mark.parametrize(
    ("title", "setting"),
    [
        ("The microphone is blocked.", {"allowed": False}),
        ("No microphone was found.", {"without_device": True}),
        ("No microphone on this address.", {"insecure": True}),
    ],
    ids=["no permission", "no device", "no secure context"],
)
def test_without_a_microphone_the_page_says_why_and_takes_words(browser, site, title, setting):
    page = open_page(browser, site, **setting)
    page.locator("#talk").click(delay=500)
    expect(page.get_by_role("alert")).to_contain_text(title)
    assert page.locator("#talk").get_attribute("aria-pressed") == "false"
    assert search_words(page, "a dog")
    expect(page.get_by_role("alert")).to_be_hidden()
    page.context.close()


def test_a_dropped_image_a_dropped_recording_and_files_that_are_neither(page, world, tmp_path):
    ids = ids_by_number(world)
    page.locator("#file").set_input_files(world.images / "5.png")
    expect(page.locator("#results-title")).to_have_text("Like the image that you gave")
    assert found(page)[0] == ids[5]
    drop(page, world.speak(EXAMPLE, tmp_path / "said.wav"), "audio/wav")
    expect(page.locator("#channels")).to_be_visible()
    assert ids[EXAMPLE] in found(page)[:10]
    drop(page, world.speak(EXAMPLE, tmp_path / "said.wav"), "audio/x-unheard-of")  # decoded by the page
    expect(page.locator("#visit-list li")).to_have_count(3)
    (tmp_path / "text.txt").write_text("words")
    drop(page, tmp_path / "text.txt", "text/plain")
    expect(page.get_by_role("alert")).to_contain_text("text.txt is neither an image nor a recording")


def drop(page: Page, path: Path, kind: str) -> None:
    """Drop a file onto the page, as the browser reports it."""
    page.evaluate(
        """([bytes, name, type]) => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([new Uint8Array(bytes)], name, {type}));
            for (const kind of ["dragover", "drop"])
                document.body.dispatchEvent(new DragEvent(kind, {dataTransfer, bubbles: true, cancelable: true}));
        }""",
        [list(path.read_bytes()), path.name, kind],
    )


# ---------------------------------------------------------------------- results


def test_more_like_this_alone_and_with_words_and_the_way_back(page, world):
    first = search_words(page, "two monkeys")
    page.locator(".similar").nth(1).click()
    expect(page.locator("#results-title")).to_have_text("More like this")
    expect(page.locator("#results-title")).to_be_focused()
    alike = found(page)
    assert first[1] not in alike and page.url.endswith(f"#like={first[1]}")
    page.get_by_role("textbox").fill("a red car")
    page.keyboard.press("Enter")
    expect(page.locator("#results-title")).to_contain_text("Like this image, and")
    assert found(page) != alike
    page.go_back()
    expect(page.locator("#results-title")).to_have_text("More like this")
    assert found(page) == alike
    page.locator("#visit-list button").last.click()
    expect(page.locator("#results-title")).to_contain_text("two monkeys")
    assert found(page) == first
    page.reload()  # as from a shared address
    expect(page.locator("#results-title")).to_contain_text("two monkeys")
    assert found(page) == first


def test_all_images_can_be_paged_through_and_nothing_close_is_said(page, world):
    search_words(page, world.caption(14))
    expect(page.locator("#nothing-close")).to_be_hidden()
    search_words(page, "zzz qqq")
    expect(page.locator("#nothing-close")).to_be_visible()
    while page.locator("#more").is_visible():
        page.locator("#more").evaluate("button => button.scrollIntoView()")  # it may hide meanwhile
        page.wait_for_timeout(50)
    shown = found(page)
    assert len(shown) == len(set(shown)) == NUM_IMAGES
    loaded = page.locator(".tile img").evaluate_all("all => all.filter(i => i.complete && i.naturalWidth).length")
    assert loaded > 24


def test_by_keyboard_alone(page, world, microphone):
    world.speak(0, microphone, SILENCE_SECONDS)
    page.keyboard.down("Space")
    expect(page.locator("body.recording")).to_be_attached()
    page.wait_for_timeout(1500)
    page.keyboard.up("Space")
    expect(page.locator("#channels")).to_be_visible()
    page.locator("#talk").focus()
    page.keyboard.press("Enter")  # on, and off again without an answer
    expect(page.locator("body.recording")).to_be_attached()
    page.keyboard.press("Escape")
    expect(page.locator("body.recording")).not_to_be_attached()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.type(" space is a letter here")
    expect(page.locator("body.recording")).not_to_be_attached()
    page.locator(".look").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-title")).to_contain_text("Result 2")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "look"
    page.route("**/v1/search*", lambda route: route.abort())
    page.locator("#more").focus()  # comes into view, which loads more by itself
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    page.errors.clear()
    page.unroute("**/v1/search*")
    page.keyboard.press("Enter")
    expect(page.locator(".look").nth(24)).to_be_focused()


def test_a_busy_service_is_asked_again_and_a_problem_is_shown(page):
    answers = iter([(429, {"Retry-After": "1"}), (422, {})])

    def answer(route):
        status, headers = next(answers)
        body = '{"detail": "the text is of no use"}'
        route.fulfill(status=status, headers=headers, body=body, content_type="application/problem+json")

    page.route("**/v1/search", answer)
    page.get_by_role("textbox").fill("a dog")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("The text is of no use.")
    assert next(answers, None) is None
    page.errors.clear()  # the browser reports both answers
    page.unroute("**/v1/search")
    assert search_words(page, "a dog")


# ---------------------------------------------------------------------- look


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
def test_both_widths_fit_and_axe_finds_nothing_serious(browser, site, viewport):
    for scheme in ("light", "dark"):
        page = open_page(browser, site, viewport=viewport, color_scheme=scheme)
        assert serious(page) == []
        page.locator("#examples-list button").click()
        expect(page.locator("#channels")).to_be_visible()
        assert found(page)
        assert serious(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        top = page.locator(".tile").first.bounding_box()["y"]
        assert top < viewport["height"] - 100, "results must be seen without scrolling"
        page.locator(".look").first.click()
        assert serious(page) == []
        assert page.errors == []
        page.context.close()


def serious(page: Page) -> list[str]:
    """Return what axe-core calls serious or critical."""
    page.wait_for_timeout(250)  # until transitions have ended: colours in between have less contrast
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in ("serious", "critical")]
