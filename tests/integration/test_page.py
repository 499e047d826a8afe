"""The page as a person meets it: a real Chromium, a real service, a real MLflow; the attempts are cheap."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from mlflow import MlflowClient
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from k8s.local import stop_all
from service.client import Client
from tests.integration.test_service import Service
from tests.integration.test_service import request as cheap

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM}: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page on which nothing may go wrong: no script error, nothing that the policy refused, no failed request."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    wrong: list[str] = []

    def note(message: ConsoleMessage) -> None:
        # Chromium counts an answer that asks for the token as an error, htmx a request that gives way to the next one.
        expected = any(words in message.text for words in ("401 (Unauthorized)", "htmx:afterRequest", "htmx:sendAbort"))
        if message.type in ("error", "warning") and not expected:
            wrong.append(message.text)

    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", note)
    yield page
    context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, mlflow_server: str) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    made = Service(folder, MCF_TRACKING_URI=mlflow_server)
    made.start()
    made.wait_until_up()
    yield made
    made.kill(signal.SIGTERM)
    stop_all(folder / "attempts", grace_seconds=2)


def test_an_experiment_appears_and_grows_into_its_comparison_while_one_looks(
    page: Page, service: Service, tiny_faces: Path
) -> None:
    page.goto(service.url)
    expect(page.get_by_text("No experiments yet")).to_be_visible()
    Client(service.url).submit(cheap(tiny_faces, name="seen", steps=30, pause=0.1, factors={"mask_ratio": [0.75, 0.5]}))
    page.get_by_role("link", name="seen").click(timeout=15_000)  # nobody reloaded
    expect(page).to_have_url(re.compile(r"/experiments/e[0-9a-f]{10}$"))
    expect(page.get_by_text("6 of 6 runs are missing")).to_be_visible()
    expect(page.locator(".state.running").first).to_be_visible(timeout=30_000)
    expect(page.locator("h1 + .state")).to_have_text("succeeded", timeout=60_000)
    expect(page.get_by_text("are missing")).to_have_count(0)
    comparison = page.locator("#comparison")
    expect(comparison.get_by_role("row", name=re.compile("mask_ratio=0.75 baseline 3 "))).to_be_visible()
    expect(page.get_by_role("link", name="Markdown")).to_be_visible()
    page.get_by_role("link", name="seed 1").first.click()
    expect(page).to_have_url(re.compile(r"/runs/r[0-9a-f]{12}$"))


def test_a_run_shows_its_curves_its_newest_picture_and_its_log(
    page: Page, service: Service, tiny_faces: Path, mlflow_server: str
) -> None:
    spec = cheap(tiny_faces, name="curves", steps=1000, pause=0.1, factors={"mask_ratio": [0.6]}, seeds=1)
    experiment = Client(service.url).submit(spec)
    run = experiment.runs()[0].id
    page.goto(f"{service.url}/runs/{run}")
    expect(page.locator("h1 + .state")).to_have_text("running", timeout=30_000)
    expect(page.locator("#curves")).to_contain_text("Nothing is logged yet", timeout=15_000)
    expect(page.locator("#log")).to_contain_text("attempt 1 from step 0")
    expect(page.locator("#checkpoints")).to_contain_text("There is no checkpoint yet")
    expect(page.locator("#attempts .state")).to_have_text("running")

    # What a trainer logs comes into view by itself.
    link = page.get_by_role("link", name="MLflow").get_attribute("href", timeout=10_000)
    assert link
    assert link.startswith(mlflow_server)
    tracked = Client(service.url).run(run).tracking_run_id
    mlflow = MlflowClient(mlflow_server)
    for step, loss in (5, 2.0), (10, 1.5), (15, float("nan")), (20, 1.25):
        mlflow.log_metric(tracked, "loss/total", loss, step=step)
    mlflow.log_image(tracked, Image.new("RGB", (96, 64), "teal"), "pictures/000000020.png")
    expect(page.get_by_role("img", name="loss/total over steps, newest 1.25")).to_be_visible(timeout=20_000)
    expect(page.locator("#curves polyline")).to_have_count(1)
    picture = page.locator("#picture img")
    expect(picture).to_be_visible(timeout=20_000)
    assert picture.evaluate("image => image.naturalWidth") == 96
    experiment.cancel()
    expect(page.locator("h1 + .state")).to_have_text("cancelled", timeout=30_000)


def test_the_arms_are_seen_side_by_side(page: Page, service: Service, tiny_faces: Path, mlflow_server: str) -> None:
    spec = cheap(tiny_faces, name="beside", factors={"mask_ratio": [0.7, 0.4]}, seeds=2)
    experiment = Client(service.url).submit(spec).wait(poll_seconds=0.2)
    mlflow = MlflowClient(mlflow_server)
    for run in experiment.runs():
        tracked = run.tracking_run_id
        for step in 1, 2, 3:
            mlflow.log_metric(tracked, "loss/total", 4.0 / step, step=step)
            mlflow.log_metric(tracked, "lr", 0.1, step=step)
        for step in 2, 4:
            # Two faces of 10 x 10 pixels in three columns, two pixels apart.
            mlflow.log_image(tracked, Image.new("RGB", (34, 22), "teal"), f"pictures/step-{step:06d}.png")

    page.goto(f"{service.url}/experiments/{experiment.id}")
    expect(page.get_by_role("heading", name="Best arm").locator("..")).to_contain_text("mask_ratio=0.7")
    expect(page.get_by_role("heading", name="Is the difference real?").locator("..")).to_contain_text("Too early")
    expect(page.get_by_role("heading", name="Cost", exact=True).locator("..")).to_contain_text("process-hours")
    cell = page.get_by_role("link", name=re.compile("mask_ratio=0.4, seed 1: succeeded, 8"))
    expect(cell).to_be_visible()

    expect(page.get_by_role("img", name="loss/total over steps")).to_be_visible(timeout=15_000)
    expect(page.locator("#curves polyline")).to_have_count(2)
    page.get_by_role("link", name="lr", exact=True).click()
    expect(page.get_by_role("img", name="lr over steps")).to_be_visible(timeout=15_000)
    expect(page.locator("#pictures img")).to_have_count(2, timeout=15_000)
    page.get_by_role("link", name="step 2").click()
    picture = page.get_by_role("img", name="mask_ratio=0.4 at step 2")
    picture.scroll_into_view_if_needed()
    expect(picture).to_have_js_property("complete", True, timeout=15_000)
    assert picture.evaluate("image => image.naturalWidth") == 46  # with the error

    expect(page.get_by_role("img", name="lr over steps")).to_be_visible(timeout=15_000)

    page.get_by_text("2 of 2 arms shown").click()
    page.get_by_role("checkbox", name="mask_ratio=0.4").uncheck()
    page.get_by_role("button", name="Show these").click()
    expect(page.locator("#curves polyline")).to_have_count(1, timeout=15_000)


def test_from_a_spec_to_the_next_one_without_a_terminal(page: Page, service: Service, tiny_faces: Path) -> None:
    spec = cheap(tiny_faces, name="written", steps=20, factors={"mask_ratio": [0.75, 0.5]}, seeds=1)
    page.goto(service.url)
    page.get_by_role("link", name="New experiment").first.click()
    text, found = page.get_by_label("Spec, as YAML or JSON"), page.locator("#found")
    text.fill(yaml.safe_dump(spec | {"seeds": 0}))
    expect(found.locator("dt")).to_have_text("seeds")
    text.fill(yaml.safe_dump(spec))
    expect(found).to_contain_text("Nothing is wrong with it")
    expect(found.get_by_role("listitem")).to_have_text(["mask_ratio=0.75 baseline", "mask_ratio=0.5"])

    # A check that takes long is given up for the next one.
    given_up: list[str] = []
    page.on("requestfailed", lambda request: given_up.append(request.url))
    page.route("**/new/check", lambda route: None, times=1)  # no answer comes
    text.press_sequentially("# ")
    page.wait_for_timeout(900)
    with page.expect_response("**/new/check"):
        text.press_sequentially("mine")
    expect(found).to_contain_text("Nothing is wrong with it")
    assert given_up == [f"{service.url}/new/check"]

    page.get_by_role("button", name="Submit").dblclick()
    expect(page.locator("h1")).to_have_text("written")
    [experiment] = Client(service.url).experiments(search="written")
    expect(page.locator("h1 + .state")).to_have_text("succeeded", timeout=60_000)
    page.get_by_role("link", name="Again with changes").click()
    expect(found).to_contain_text("2, of which 2 have finished")
    text.fill(text.input_value().replace("name: written", "name: written-again").replace("seeds: 1", "seeds: 2"))
    page.get_by_role("button", name="Submit").click()
    expect(page.locator("h1")).to_have_text("written-again")

    page.goto(service.url)
    page.get_by_label("Name or id").fill("written")
    page.get_by_role("button", name="Filter").click()
    row = page.get_by_role("row", name=re.compile(experiment.id))
    expect(row).to_contain_text("landmark nme", timeout=15_000)
    for box in page.get_by_role("checkbox", name=re.compile("^Pick written")).all():
        box.check()
    page.wait_for_timeout(3500)  # the list has renewed itself meanwhile
    page.get_by_role("button", name="Compare the two").click()
    expect(page.locator("h1")).to_have_text("written and written-again")
    expect(page.get_by_role("row", name=re.compile("mask_ratio=0.5 .* 1 shared"))).to_be_visible()


def test_a_spec_is_submitted_without_any_script(browser: Browser, service: Service, tiny_faces: Path) -> None:
    spec = cheap(tiny_faces, name="plain", steps=20, seeds=1)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{service.url}/new")
    file = {"name": "spec.yaml", "mimeType": "text/yaml", "buffer": yaml.safe_dump(spec | {"seeds": 0}).encode()}
    page.get_by_label("Or a file").set_input_files(file)  # type: ignore[arg-type]
    page.get_by_role("button", name="Show its text").click()
    page.get_by_role("button", name="Check").click()
    expect(page.locator("#found dt")).to_have_text("seeds")
    text = page.get_by_label("Spec, as YAML or JSON")
    text.fill(text.input_value().replace("seeds: 0", "seeds: 1"))
    page.get_by_role("button", name="Submit").click()
    expect(page.locator("h1")).to_have_text("plain")
    context.close()


def test_an_experiment_is_cancelled_by_keyboard(page: Page, service: Service, tiny_faces: Path) -> None:
    experiment = Client(service.url).submit(cheap(tiny_faces, name="stopped", steps=1000, pause=0.1, seeds=1))
    page.goto(f"{service.url}/experiments/{experiment.id}")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    while not page.evaluate("document.activeElement.id == 'cancel'"):
        page.keyboard.press("Tab")
    page.wait_for_timeout(3500)  # the page has renewed itself meanwhile
    expect(page.locator("#cancel")).to_be_focused()
    page.keyboard.press("Enter")
    button = page.get_by_role("button", name="Cancel the experiment")
    button.focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{service.url}/experiments/{experiment.id}")
    expect(page.locator("h1 + .state")).to_have_text("cancelled", timeout=15_000)
    expect(page.get_by_role("link", name="Cancel")).to_have_count(0)


def test_one_sees_what_ranks_while_runs_train_and_the_table_as_of_a_step(
    page: Page, service: Service, tiny_faces: Path
) -> None:
    spec = cheap(tiny_faces, name="watched", steps=60, pause=0.1, factors={"mask_ratio": [0.75, 0.5]}, seeds=1)
    spec["base"] |= {"evaluation": {"every": 10}, "contrastive": {"temperature": 0.9}}
    experiment = Client(service.url).submit(spec)
    page.goto(f"{service.url}/experiments/{experiment.id}")
    expect(page.get_by_role("link", name="mask_ratio=0.75, seed 0").locator("..").first).to_contain_text(
        "it has stalled", timeout=30_000
    )
    experiment.wait(poll_seconds=0.2)
    page.reload()
    chart = page.get_by_role("img", name="probe/landmark_nme over images seen")
    expect(chart).to_be_visible(timeout=15_000)
    expect(page.locator("#curves polyline")).to_have_count(2)

    # By keyboard alone.
    page.locator("#at").focus()
    page.keyboard.type("20")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"at=20"))
    expect(page.locator("#as-of")).to_contain_text("as of step 20 (1,280 images)")
    # 0.8 above the end at step 20.
    row = page.locator("#comparison").get_by_role("row", name=re.compile("mask_ratio=0.75 baseline 1 7.8"))
    expect(row).to_be_visible()
    assert page.get_by_role("link", name="CSV").get_attribute("href") == (
        f"/v1/experiments/{experiment.id}/comparison.csv?at=20"
    )
    page.get_by_role("link", name="Show the end of the runs").click()
    expect(page.locator("#as-of")).to_have_count(0)


def test_axe_has_nothing_serious_to_say(browser: Browser, service: Service, tiny_faces: Path) -> None:
    client = Client(service.url)
    failing = cheap(tiny_faces, name="failing", seeds=1, factors={"contrastive.temperature": [0.2, 0.5, 0.7]})
    ended = client.submit(failing).wait(poll_seconds=0.2)
    going = client.submit(cheap(tiny_faces, name="going", steps=1000, pause=0.1, seeds=3))
    paths = ["/", "/queue", "/login", "/experiments/e0000000000"]
    paths += [f"/experiments/{ended.id}", f"/experiments/{going.id}", f"/experiments/{going.id}/cancel"]
    paths += [f"/experiments/{going.id}/extend", f"/new?from={going.id}", f"/compare?one={ended.id}&other={going.id}"]
    paths += [f"/runs/{run.id}" for run in ended.runs()]
    hook = client.create_webhook("http://127.0.0.1:9/nobody-listens")
    paths += ["/webhooks", f"/webhooks/{hook.id}", f"/webhooks/{hook.id}/delete"]
    try:
        axe = Axe()
        for scheme in "light", "dark":
            context = browser.new_context(color_scheme=scheme)
            page = context.new_page()
            for path in paths:
                page.goto(service.url + path)
                page.locator("#curves:not([hx-trigger=load])").or_(page.locator("main:not(:has(#curves))")).wait_for()
                found = axe.run(page).response["violations"]
                wrong = [(item["id"], item["nodes"][0]["html"]) for item in found if item["impact"] in SERIOUS]
                assert wrong == [], (scheme, path)
            context.close()
    finally:
        client.delete_webhook(hook.id)
        going.cancel()  # it holds the places that others wait for


TOO_WIDE = """[...document.querySelectorAll('main *')]
    .filter(each => each.getBoundingClientRect().right > 390 && !each.closest('.scroll'))
    .map(each => each.outerHTML.slice(0, 200))"""


def test_it_fits_a_phone_and_follows_dark_mode(browser: Browser, service: Service, tiny_faces: Path) -> None:
    experiment = Client(service.url).submit(cheap(tiny_faces, name="small", seeds=1)).wait(poll_seconds=0.2)
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark")
    page = context.new_page()
    paths = ["/", "/queue", "/new", "/compare", "/webhooks"]
    for path in *paths, f"/experiments/{experiment.id}", f"/runs/{experiment.runs()[0].id}":
        page.goto(service.url + path)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, (path, page.evaluate(TOO_WIDE))
    red, green, blue = map(
        int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
    )
    assert max(red, green, blue) < 60
    context.close()


def test_what_is_not_there_is_said_in_words(page: Page, service: Service) -> None:
    answer = page.request.get(f"{service.url}/runs/r000000000000")
    assert answer.status == 404
    assert "There is no run" in answer.text()
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy


def test_the_token_is_asked_for_once_and_no_script_can_read_it(page: Page, tmp_path: Path, tiny_faces: Path) -> None:
    token = "a s3cret; with=signs"
    guarded = Service(tmp_path, MCF_TOKEN=token)
    guarded.start()
    try:
        guarded.wait_until_up()
        experiment = Client(guarded.url, token).submit(cheap(tiny_faces, name="guarded", seeds=1)).id
        answer = page.goto(f"{guarded.url}/experiments/{experiment}")
        assert answer
        assert answer.status == 401
        page.get_by_label("Token").fill("wrong")
        with page.expect_response(lambda answer: answer.status == 401):
            page.get_by_role("button", name="Open").click()
        expect(page.get_by_text("not known to the service")).to_be_visible()
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Open").click()
        expect(page.get_by_role("heading", name="guarded")).to_be_visible()
        assert page.url.endswith(f"/experiments/{experiment}")
        [cookie] = page.context.cookies()
        assert cookie["httpOnly"]
        assert cookie["sameSite"] == "Strict"
        page.goto(guarded.url)
        expect(page.get_by_role("link", name="guarded")).to_be_visible()
        expect(page.get_by_text("token MCF_TOKEN (admin)")).to_be_visible()
        elsewhere = page.request.post(
            f"{guarded.url}/login", form={"token": token, "next": "//elsewhere.org"}, max_redirects=0
        )
        assert elsewhere.headers["location"] == "/"
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("Token")).to_be_visible()
        assert page.context.cookies() == []
    finally:
        guarded.kill(signal.SIGTERM)
        stop_all(tmp_path / "attempts", grace_seconds=2)


def test_an_open_page_says_that_the_service_is_away_or_wants_the_token_and_loses_nothing(
    browser: Browser, tmp_path: Path, tiny_faces: Path
) -> None:
    guarded = Service(tmp_path, MCF_TOKEN="first")
    guarded.start()
    context = browser.new_context()

    def log_in(page: Page) -> None:
        page.get_by_label("Token").fill("first")
        page.get_by_role("button", name="Open").click()

    try:
        guarded.wait_until_up()
        listed, writing = context.new_page(), context.new_page()
        # Parts that are asked for again and again, and one that is asked for once.
        listed.goto(guarded.url)
        log_in(listed)
        expect(listed.get_by_text("No experiments yet")).to_be_visible()
        writing.goto(f"{guarded.url}/new")
        notes = [page.locator("#fresh") for page in (listed, writing)]
        assert all(note.get_attribute("role") == "status" for note in notes)

        guarded.kill()
        text = yaml.safe_dump(cheap(tiny_faces, name="kept", seeds=1, steps=5))
        writing.get_by_label("Spec, as YAML or JSON").fill(text)
        for note in notes:
            expect(note).to_contain_text(re.compile(r"does not answer; what you see is from \d\d:\d\d:\d\d\. It is"))
        guarded.start()
        for note in notes:
            expect(note).to_be_empty(timeout=30_000)
        expect(writing.locator("#found")).to_contain_text("Nothing is wrong with it")

        # It takes what it is asked, and says nothing.
        guarded.tell(signal.SIGSTOP)
        try:
            expect(notes[0]).to_contain_text("does not answer", timeout=20_000)
        finally:
            guarded.tell(signal.SIGCONT)
        expect(notes[0]).to_be_empty(timeout=10_000)

        context.clear_cookies()
        expect(notes[0]).to_contain_text("You are logged out", timeout=10_000)
        writing.get_by_role("button", name="Submit").click()
        expect(writing.get_by_text("What you have written is kept")).to_be_visible()
        with context.expect_page() as opened:
            listed.get_by_role("link", name="Log in in another tab").click()
        log_in(opened.value)
        expect(notes[0]).to_be_empty(timeout=10_000)
        log_in(writing)
        expect(writing.get_by_label("Spec, as YAML or JSON")).to_have_value(text)
        writing.get_by_role("button", name="Submit").click()
        expect(writing.locator("h1")).to_have_text("kept")
    finally:
        context.close()
        guarded.kill(signal.SIGTERM)
        stop_all(tmp_path / "attempts", grace_seconds=2)
