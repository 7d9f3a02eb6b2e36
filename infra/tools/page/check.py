"""Clicks through every page of a gateway in a browser without a head: python check.py URL OUT [AXE.JS]

Fails on an error in the console, on a serious or critical finding of axe, and on a page that is larger than 300 KB. Leaves a screenshot
of every page, light, dark and as on a phone, in OUT.
"""
import json
import pathlib
import shutil
import sys
import urllib.request

from playwright.sync_api import expect, sync_playwright

url, out = sys.argv[1].rstrip("/"), pathlib.Path(sys.argv[2])
axe = pathlib.Path(sys.argv[3]).read_text() if len(sys.argv) > 3 else None
out.mkdir(parents=True, exist_ok=True)
faults = []


def get(path):
    return json.load(urllib.request.urlopen(url + path))


def until(page, holds):
    """Waits for an expression to hold; `wait_for_function` would be stopped by the policy of the page."""
    for _ in range(300):
        if page.evaluate(holds):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"not within half a minute: {holds}")


def look(page, name):
    """A screenshot, and what axe finds."""
    # Not until the network is idle: some pages listen to events for as long as they are open.
    page.wait_for_load_state("load")
    page.wait_for_timeout(500)
    page.screenshot(path=out / f"{name}.png", full_page=True)
    if axe:
        # The policy of the page lets no script in: this one comes by the protocol of the browser.
        page.evaluate(axe + "; 0")
        found = page.evaluate("axe.run(document, {iframes: false}).then(r => r.violations)")
        for violation in found:
            if violation["impact"] in ("serious", "critical"):
                faults.append(f"{name}: {violation['id']}: {[node['html'][:120] for node in violation['nodes'][:3]]}")


def main(page):
    page.on("console", lambda m: faults.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda e: faults.append(f"script: {e}"))
    page.goto(url + "/")
    chips = page.locator(".chip")
    expect(chips.first).to_be_visible()
    look(page, "search-empty")
    chips.nth(0).click()
    expect(page.locator(".hit").first).to_be_visible()
    assert "with=" in page.url, "the question stands in the address"
    chips.nth(1).click()
    page.locator(".chip").nth(1).click()
    expect(page.locator('.chip[data-v="-1"]')).to_have_count(1)
    expect(page.locator(".hit").first).to_be_visible()
    until(page, "[...document.querySelectorAll('.hit img')].slice(0, 8).every(i => i.complete && i.naturalWidth > 0)")
    expect(page.locator(".hit .tag").first).to_be_visible()
    look(page, "search")
    before = page.locator(".hit").count()
    page.get_by_role("button", name="More", exact=True).click()
    until(page, f"document.querySelectorAll('.hit').length > {before}")
    page.locator(".hit").first.get_by_text("But with").click()
    expect(page.get_by_text("More like", exact=False).first).to_be_visible()
    look(page, "this-but-with")
    shared = page.url
    page.goto("about:blank")
    page.goto(shared)
    expect(page.locator(".hit").first).to_be_visible()
    page.locator(".hit").first.get_by_text("More like this").click()
    expect(page.locator(".hit").first).to_be_visible()
    item = get("/v1/jobs?limit=1000")
    page.get_by_role("button", name="Clear").click()
    hit = json.load(urllib.request.urlopen(urllib.request.Request(url + "/v1/search", json.dumps({"k": 1, "terms": [{"term": {"attributes": {"with": [get("/v1/aliases/main/vocabulary")["attributes"][0]]}}}]}).encode(), {"content-type": "application/json"})))["hits"][0]
    picture = urllib.request.urlopen(f"{url}/v1/images/{hit['item']}").read()
    page.locator("input[type=file]").set_input_files({"name": "me.jpg", "mimeType": "image/jpeg", "buffer": picture})
    expect(page.locator(".drop img")).to_be_visible()
    expect(page.locator(".hit").first).to_contain_text(hit["item"])
    look(page, "dropped")
    for name in ["Jobs", "Releases", "Reports", "Models", "Cluster"]:
        page.get_by_role("navigation").get_by_role("link", name=name).click()
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
        expect(page.locator("table").first).to_be_visible()
        look(page, name.lower())
    job = next(j for j in item if j["kind"] == "pipeline")["job"]
    page.goto(f"{url}/#/jobs/{job}")
    expect(page.locator(".tasks").first).to_be_visible()
    look(page, "job")
    page.goto(f"{url}/#/reports/{job}")
    expect(page.frame_locator("iframe").locator("svg, img, table").first).to_be_visible()
    look(page, "report")
    page.goto(f"{url}/#/models/{job}")
    expect(page.locator("svg.plot").first).to_be_visible()
    look(page, "model")
    page.goto(f"{url}/docs")
    expect(page.get_by_role("heading", name="Types")).to_be_visible()
    look(page, "docs")
    releases = get("/v1/releases?alias=main")
    if len(releases) > 1:
        page.goto(f"{url}/#/releases")
        page.get_by_role("button", name="Roll back main").first.click()
        expect(page.get_by_role("dialog")).to_be_visible()
        look(page, "question")
        page.get_by_role("button", name="No").click()
        assert len(get("/v1/releases?alias=main")) == len(releases), "a question that is denied changes nothing"
        page.get_by_role("link", name="Compare").first.click()
        expect(page.get_by_role("heading", name="Queries that moved most")).to_be_visible()
        look(page, "compare")


with sync_playwright() as playwright:
    system = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
    browser = playwright.chromium.launch(executable_path=system, args=["--no-sandbox"])
    main(browser.new_page(viewport={"width": 1280, "height": 900}))
    question = "/#/search?with=" + get("/v1/aliases/main/vocabulary")["attributes"][0]
    for name, options in {"dark": {"color_scheme": "dark"}, "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2}}.items():
        page = browser.new_context(**options).new_page()
        page.goto(url + question)
        expect(page.locator(".hit").first).to_be_visible()
        look(page, name)
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        if wide > 0:
            faults.append(f"{name}: {wide} px wider than the screen")
    page.goto(url + "/")
    page.locator(".chip").first.wait_for()
    ready = page.evaluate("performance.now()")
    total = page.evaluate(
        "performance.getEntries().filter(e => 'decodedBodySize' in e && !e.name.includes('/v1/')).reduce((sum, e) => sum + e.decodedBodySize, 0)"
    )
    browser.close()

assert total > 0, "the page came from somewhere"
print(f"{total} bytes, chips shown {ready:.0f} ms after the start of the page, {len(list(out.glob('*.png')))} screenshots in {out}")
if total > 300_000:
    faults.append(f"{total} bytes are more than 300 KB")
sys.exit("\n".join(faults) if faults else 0)
