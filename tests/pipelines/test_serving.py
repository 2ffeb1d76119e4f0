"""What a server answers, over real HTTP: first without Ray, then by the door with replicas of Ray Serve."""

import asyncio
import base64
import contextlib
import dataclasses
import http.client
import io
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

import pipelines.serve as door
from pipelines.base.door import ROOT, run
from pipelines.base.errors import SetupError
from pipelines.recipes.model import build_model
from pipelines.recipes.reading import load_recipe
from pipelines.runs.checkpoint import Checkpoint, Progress
from pipelines.serving.batching import Picture, Predictor, groups
from pipelines.serving.limits import TOKEN, Limits, Refusal
from segmodels.loading import load

pytest.importorskip("fastapi")
CLASSES = ("wall", "floor <b>", "sky")
PALETTE = ((0, 0, 0), (250, 10, 10), (20, 30, 240))
LIMITS = Limits(bytes=40_000, pixels=128 * 128, waiting=3, body_s=0.5, answer_s=20)
SECRET = "not-to-be-guessed-by-anybody"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint whose classes follow brightness and position, as random weights have it."""
    folder = tmp_path_factory.mktemp("served")
    keys = [
        "head={name: fcn, channels: 16}",
        "aux=null",
        "loss={logits: {cross_entropy: 1.0}}",
        "inference={mode: whole}",
    ]
    recipe = load_recipe("sample_small", [*keys, "view.crop=[32,32]", f"output={folder}"])
    torch.manual_seed(0)
    model = build_model(recipe, len(CLASSES)).eval()
    with torch.no_grad():  # classes that are equally likely, so that masks have all of them
        pixels = np.array(Image.open(io.BytesIO(encoded()))).transpose(2, 0, 1)[None]
        logits = model(torch.from_numpy(pixels))["logits"]
        [m for m in model.modules() if getattr(m, "out_channels", 0) == len(CLASSES)][-1].bias -= logits.mean((0, 2, 3))
    Checkpoint(
        model=model.state_dict(), recipe=recipe, stage="first", step=1, progress=Progress(), classes=CLASSES,
        palette=PALETTE, seen=np.zeros(0, np.int64),
    ).write(folder / "best.pt")  # fmt: skip
    return folder / "best.pt"


@pytest.fixture(scope="module")
def model(checkpoint):
    return load(checkpoint, device="cpu")


class Here:
    """A predictor of this process in the place of replicas; `hold` keeps answers back, `count` is what runs."""

    def __init__(self, model):
        self.predictor, self.hold, self.count = Predictor(model, LIMITS), asyncio.Event(), 1
        self.hold.set()

    async def answer(self, data, kind, mask):
        await self.hold.wait()
        try:
            (found,) = self.predictor.predict([self.predictor.decode(data, kind)])
        except Refusal as refusal:
            return refusal
        return self.predictor.encode(found, kind, mask)

    async def running(self):
        return self.count


@contextlib.contextmanager
def listening(app):
    """The application, answering in a thread as the door has it answer; gives its port."""
    import uvicorn

    from pipelines.serving.listening import listener, settings

    with listener("127.0.0.1", 0) as sock:
        server = uvicorn.Server(settings(app, LIMITS.waiting, log=False))
        thread = threading.Thread(target=server.run, args=([sock],))
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def served(model, checkpoint):
    """A server with a token, and what predicts for it."""
    from pipelines.serving.front import Front
    from pipelines.serving.opened import Plan, look

    here = Here(model)
    about = look(Plan(checkpoint, {}, "auto", LIMITS, 4, 0.0))
    with listening(Front(here, about, LIMITS, SECRET).app()) as port:
        yield here, port


@pytest.fixture
def ask(served):
    return lambda *words, **options: request(served[1], *words, **options)


def request(port, method, path, body=None, token=SECRET, timeout=30, **headers):
    """Status, headers and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if token:
        given["Authorization"] = f"Bearer {token}"
    with contextlib.closing(connection):
        connection.request(method, path, body, given)
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()


def encoded(kind="PNG", size=(37, 26), mode="RGB", **options):
    """A picture's file, of no plain colour."""
    width, height = size
    pixels = np.random.default_rng(5).integers(0, 255, (height, width, 3), np.uint8)
    pixels[:, : width // 2] //= 4
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind, **options)
    return out.getvalue()


def turned():
    """A JPEG whose EXIF data say that it lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded("JPEG", exif=exif.tobytes(), quality=95)


def bomb(side=60_000):
    """A PNG of a few hundred bytes that announces 3.6 thousand million pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")


def told(answer, status):
    """The error of an answer, which must have that status and all three parts."""
    assert answer[0] == status, answer
    page = json.loads(answer[2])
    assert page["status"] == status
    assert set(page["error"]) == {"given", "allowed", "cure"}
    assert all(page["error"].values())
    return page["error"]


def test_all_answers_are_what_the_model_predicts(ask, model):
    data = encoded()
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    wanted = model.predict(pixels)
    assert len(np.unique(wanted)) > 1  # else any mask would do
    status, headers, body = ask("POST", "/predict?answer=mask", data)
    image = Image.open(io.BytesIO(body))
    assert (status, headers["content-type"], image.mode) == (200, "image/png", "P")
    assert np.array_equal(np.asarray(image), wanted)
    assert np.array_equal(np.asarray(image.convert("RGB")), np.array(PALETTE, np.uint8)[wanted])

    page = json.loads(ask("POST", "/predict?mask=true", data)[2])
    assert (page["height"], page["width"], page["protocol"]) == (26, 37, model.protocol)
    assert base64.b64decode(page["mask"]) == body
    counts = {entry["name"]: entry["pixels"] for entry in page["classes"]}
    assert counts == {CLASSES[i]: int((wanted == i).sum()) for i in np.unique(wanted)}
    assert [entry["pixels"] for entry in page["classes"]] == sorted(counts.values(), reverse=True)
    assert sum(entry["share"] for entry in page["classes"]) == pytest.approx(1)
    assert all(entry["colour"] == "#{:02x}{:02x}{:02x}".format(*PALETTE[entry["id"]]) for entry in page["classes"])
    assert "mask" not in json.loads(ask("POST", "/predict", data)[2])

    archive = np.load(io.BytesIO(ask("POST", "/predict?answer=probabilities", data)[2]), allow_pickle=False)
    assert archive["classes"].tolist() == list(CLASSES)
    exact = model.predict(pixels, probabilities=True)
    assert archive["probabilities"].dtype == np.float16
    np.testing.assert_allclose(archive["probabilities"], exact, rtol=0, atol=2**-11)


@pytest.mark.parametrize(
    "data",
    [encoded(size=(1, 1)), encoded("JPEG", mode="CMYK"), encoded(mode="RGBA"), encoded(mode="L"), turned(),
     encoded("WEBP"), encoded("TIFF"), encoded("BMP"), encoded(mode="I;16")],
    ids=["1x1", "CMYK", "alpha", "grey", "EXIF", "WebP", "TIFF", "BMP", "16 bit"],
)  # fmt: skip
def test_unusual_images_are_predicted_as_predict_does(ask, model, tmp_path, data):
    (tmp_path / "image").write_bytes(data)
    wanted = model.predict(tmp_path / "image")
    status, _, body = ask("POST", "/predict?answer=mask", data)
    assert status == 200
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(body))), wanted)
    assert wanted.shape in ((26, 37), (1, 1))  # as stored, also of the one that EXIF would turn


@pytest.mark.parametrize(
    ("status", "data", "given"),
    [
        (415, b"", "an empty body"),
        (415, b"<!doctype html><p>street.jpg", "<!doctype"),
        (415, encoded("GIF", save_all=True, append_images=[Image.new("RGB", (37, 26))]), "GIF8"),
        (422, encoded("WEBP", save_all=True, append_images=[Image.new("RGB", (37, 26))]), "2 pictures"),
        (422, encoded()[:300], "300 bytes"),
        (422, encoded("JPEG")[:200], "200 bytes"),
        (422, b"\x89PNG\r\n\x1a\n" + bytes(500), "damaged"),
        (413, bomb(), "60,000x60,000 pixels"),
        (413, encoded(size=(129, 128), mode="L"), "129x128 pixels"),
    ],
    ids=["empty", "html", "animated gif", "animated webp", "cut png", "cut jpeg", "no png", "bomb", "129x128"],
)
def test_bad_images_are_refused_with_their_cure(ask, status, data, given):
    error = told(ask("POST", "/predict", data, Content_Type="image/jpeg"), status)
    assert given in error["given"], error
    assert ask("POST", "/predict", encoded())[0] == 200  # and the next client is answered


def test_bodies_that_are_too_large_or_too_slow_are_refused_before_they_have_come(ask, served):
    assert "41,000 bytes" in told(ask("POST", "/predict", bytes(41_000)), 413)["given"]
    chunks = (bytes(1000) for _ in range(100))
    assert "at most 40,000 bytes" in told(ask("POST", "/predict", chunks), 413)["allowed"]
    connection = socket.create_connection(("127.0.0.1", served[1]))
    with connection:  # a gigabyte that never comes: refused by what it announces
        connection.sendall(f"POST /predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\n"
                           f"Content-Length: {1 << 30}\r\n\r\n".encode())  # fmt: skip
        assert connection.recv(99).startswith(b"HTTP/1.1 413 ")
    connection = socket.create_connection(("127.0.0.1", served[1]))
    with connection:
        connection.sendall(f"POST /predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\n"
                           "Content-Length: 100\r\n\r\nslow".encode())  # fmt: skip
        assert connection.recv(99).startswith(b"HTTP/1.1 408 ")


def test_what_curl_sends_without_a_type_is_taken(ask):
    assert ask("POST", "/predict", encoded(), Content_Type="application/x-www-form-urlencoded")[0] == 200


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "application/json", "text/html"])
def test_a_body_that_says_it_is_no_image_is_refused_with_the_right_command(ask, kind):
    error = told(ask("POST", "/predict", encoded(), Content_Type=kind), 415)
    assert "curl --data-binary" in error["cure"]
    assert "gzip" in told(ask("POST", "/predict", encoded(), Content_Encoding="gzip"), 415)["given"]


def test_probabilities_have_a_bound_of_their_own(model):
    predictor = Predictor(model, Limits(pixels=400))  # four values for each pixel that is allowed
    assert predictor.decode(encoded(size=(20, 20)), "probabilities").probabilities
    predictor.classes *= 2
    assert not predictor.decode(encoded(size=(20, 20)), "areas").probabilities
    with pytest.raises(Refusal) as refused:
        predictor.decode(encoded(size=(20, 20)), "probabilities")
    assert refused.value.status == 413
    assert "2,400 values" in refused.value.given


def test_every_route_but_page_and_health_asks_for_the_token(ask):
    for token in (None, "wrong", SECRET[:-1], SECRET + "x", "ünlesbar"):
        for method, path in (("POST", "/predict"), ("GET", "/model"), ("GET", "/metrics")):
            answer = ask(method, path, token=token and token.encode().decode("latin1"))
            assert "Authorization: Bearer" in told(answer, 401)["cure"]
            assert answer[1]["www-authenticate"] == "Bearer"
    assert [ask("GET", path, token=None)[0] for path in ("/", "/healthz", "/readyz", "/openapi.json")] == [200] * 4


def test_wrong_routes_methods_and_values_are_said(ask):
    error = told(ask("GET", "/predict"), 405)
    assert error["allowed"].startswith("POST")
    assert ask("DELETE", "/model")[1]["allow"] == "GET"
    assert "/predict" in told(ask("GET", "/no/such"), 404)["allowed"]
    error = told(ask("POST", "/predict?answer=masks", encoded()), 422)
    assert error["given"] == "answer=masks"
    assert "'areas', 'mask' or 'probabilities'" in error["allowed"]
    assert ask("GET", "/docs")[0] == 404  # FastAPI's page loads scripts from elsewhere


def test_only_so_many_wait_and_the_others_are_told(served, ask):
    here, _ = served
    here.hold.clear()
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(ask("POST", "/predict", encoded())[0]))
        for _ in range(LIMITS.waiting)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while b"context_heads_waiting 3.0" not in ask("GET", "/metrics")[2]:
        assert time.monotonic() < deadline
    refused = ask("POST", "/predict", encoded())
    assert "3 at a time" in told(refused, 503)["allowed"]
    assert refused[1]["retry-after"] == "1"
    here.hold.set()
    for thread in threads:
        thread.join()
    assert answers == [200] * 3
    assert b"context_heads_waiting 0.0" in ask("GET", "/metrics")[2]


def test_counters_tell_requests_by_route_and_status(served, ask):
    def counted(route, status):
        lines = ask("GET", "/metrics")[2].decode().splitlines()
        start = f'context_heads_requests_total{{route="{route}",status="{status}"}} '
        return next((float(line.removeprefix(start)) for line in lines if line.startswith(start)), 0)

    before = counted("/predict", 200), counted("/predict", 415), counted("other", 404)
    ask("POST", "/predict", encoded())
    ask("POST", "/predict", b"none")
    for name in ("/a", "/b"):
        ask("GET", name)
    after = counted("/predict", 200), counted("/predict", 415), counted("other", 404)
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 2]
    text = ask("GET", "/metrics")[2].decode()
    assert "context_heads_replicas 1.0" in text
    assert 'route="/a"' not in text  # strangers' names are not kept


def test_readiness_follows_the_replicas(served, ask):
    here, _ = served
    here.count = 0
    assert "0 replicas" in told(ask("GET", "/readyz"), 503)["given"]
    assert ask("GET", "/healthz")[0] == 200
    here.count = 2
    assert json.loads(ask("GET", "/readyz")[2]) == {"status": "ready", "replicas": 2}
    here.count = 1


def test_openapi_describes_the_upload_and_the_token(ask):
    page = json.loads(ask("GET", "/openapi.json")[2])
    assert set(page["paths"]) == {"/predict", "/model", "/healthz", "/readyz", "/metrics"}
    post = page["paths"]["/predict"]["post"]
    assert "image/png" in post["requestBody"]["content"]
    assert {entry["name"] for entry in post["parameters"]} == {"answer", "mask"}
    assert post["security"] == [{"HTTPBearer": []}]
    assert {"200", "401", "413", "415", "422", "503"} <= set(post["responses"])


def test_the_page_names_no_other_place(ask):
    status, headers, body = ask("GET", "/", token=None)
    text = body.decode()
    assert status == 200
    assert "http://" not in text
    assert "https://" not in text
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "innerHTML" not in text  # a class may be called <b>
    known = json.loads(ask("GET", "/model")[2])
    assert [entry["name"] for entry in known["classes"]] == list(CLASSES)
    assert known["limits"]["bytes"] == LIMITS.bytes


def test_batches_hold_one_size_and_bounded_pixels():
    small, large = (10, 10), (20, 20)
    assert list(groups([small, large, small, small, large], 250)) == [[0, 2], [1], [3], [4]]
    assert sorted(i for group in groups([small, large, small], 10_000) for i in group) == [0, 1, 2]


def test_a_batch_predicts_what_each_image_alone_does(model):
    predictor = Predictor(model, LIMITS)
    asked = [((37, 26), "areas"), ((20, 20), "mask"), ((37, 26), "probabilities"), ((37, 26), "areas")]
    pictures = [predictor.decode(encoded(size=size), kind) for size, kind in asked]
    pictures[3] = Picture(pictures[3].pixels[:, ::-1])
    found = predictor.predict(pictures)
    assert [one.batch for one in found] == [3, 1, 3, 3]
    for picture, one in zip(pictures, found, strict=True):
        alone = model.predict(picture.pixels, probabilities=picture.probabilities)
        assert one.values.dtype == alone.dtype
        np.testing.assert_allclose(one.values, alone, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--replicas", "0"], "--replicas 0: 1 or more"),
        (["--max-mib", "nan"], "--max-mib nan: a number above 0"),
        (["--port", "70000"], "65535 or less"),
        (["--host", "0.0.0.0"], "there is no token"),
        (["--host", "203.0.113.7", "--open"], "Give another --port"),
        (["--token-file", "nowhere"], "--token-file nowhere: cannot be read"),
        (["--mode", "slide", "--window", "32", "32", "--stride", "64", "64"], "1 <= stride <= window"),
    ],
)
def test_the_door_refuses_before_ray_starts(checkpoint, monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", ["serve", str(checkpoint), "--port", "0", *words])
    with pytest.raises(SystemExit) as left:
        run(door.main)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_a_short_token_or_a_busy_port_is_refused(checkpoint, monkeypatch, capsys):
    monkeypatch.setenv(TOKEN, "short")
    monkeypatch.setattr(sys, "argv", ["serve", str(checkpoint)])
    with pytest.raises(SystemExit):
        run(door.main)
    assert f"{TOKEN}: a token has 16 or more" in capsys.readouterr().err
    monkeypatch.delenv(TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setattr(sys, "argv", ["serve", str(checkpoint), "--port", port])
        with pytest.raises(SystemExit):
            run(door.main)
    assert f"--port {port}: Address already in use. Give another --port" in capsys.readouterr().err


def test_a_node_that_does_not_see_the_checkpoint_is_named(checkpoint, monkeypatch):
    from pipelines.serving import opened

    monkeypatch.setattr(opened, "count_alive", lambda: 2)
    seen = {"10.0.0.1 (aa)": True, "10.0.0.2 (bb)": True}
    monkeypatch.setattr(opened, "on_each_node", lambda look, *words: seen)
    opened.check_seen(checkpoint)
    seen["10.0.0.2 (bb)"] = False
    with pytest.raises(SetupError, match=r"1 of 2 nodes \(10\.0\.0\.2 \(bb\)\) do not see .*best\.pt"):
        opened.check_seen(checkpoint)


def test_the_benchmark_counts_what_comes_back(served, model, checkpoint):
    here, _ = served
    from pipelines.serving.front import Front
    from pipelines.serving.opened import Plan, look
    from pipelines.speed.serve import bad_uploads, clients, loop, pictures

    limits = dataclasses.replace(LIMITS, bytes=1 << 20, waiting=16)
    with listening(Front(here, look(Plan(checkpoint, {}, "auto", limits, 4, 0.0)), limits).app()) as port:
        bad = clients(port, bad_uploads(), 3)
        assert bad.statuses == {413: 2, 415: 2, 422: 2}
        images = pictures(5, 24, 40)
        load = clients(port, images, 2)
    assert load.statuses == {200: 5}
    assert len(load.latencies) == 5
    assert 0 < min(load.latencies) <= load.seconds
    assert loop(Predictor(model, limits), images) > 0
    assert len(set(images)) == 5


DRAINING = """
import asyncio, sys
from pipelines.base.door import run
from pipelines.serving.answers import About, Answer
from pipelines.serving.front import Front
from pipelines.serving.limits import Limits
from pipelines.serving.listening import address_of, answer, listener

class Slow:
    async def answer(self, data, kind, mask):
        print("begun", flush=True)
        await asyncio.sleep(1)
        return Answer(b"whole", 1, 1)

    async def running(self):
        return 1

def main():
    with listener("127.0.0.1", 0) as sock:
        print(address_of(sock), flush=True)
        answer(Front(Slow(), About("", "", "", "", []), Limits()).app(), sock, 4, False)

run(main)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_server_after_what_was_begun(number, code):
    process = subprocess.Popen(
        [sys.executable, "-c", DRAINING], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        port = int(process.stdout.readline().rpartition(":")[2])
        answers = []
        client = threading.Thread(target=lambda: answers.append(request(port, "POST", "/predict", b"x", None)))
        client.start()
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
        client.join()
        assert (process.returncode, err.strip()) == (code, "stopped")
        assert answers[0][::2] == (200, b"whole")
    finally:
        process.kill()


def at_once(port, data, count):
    """The answers to as many clients at once, who ask for masks."""
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(request(port, "POST", "/predict?answer=mask", data)))
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@pytest.mark.ray
def test_replicas_predict_together_and_come_back_when_they_are_lost(checkpoint, model, ray_session):
    import ray
    from ray import serve

    from pipelines.serving.front import Front
    from pipelines.serving.opened import Plan, look
    from pipelines.serving.replica import deployed

    limits = dataclasses.replace(LIMITS, waiting=8)
    plan = Plan(checkpoint, {"flip": True}, "fp32", limits, 4, 0.2)
    data = encoded()
    wanted = load(checkpoint, device="cpu", inference=plan.inference).predict(np.asarray(Image.open(io.BytesIO(data))))
    with deployed(plan, dataclasses.replace(ray_session, count=1)) as replicas:
        assert "1 replica with" in replicas.told
        with listening(Front(replicas, look(plan), limits).app()) as port:
            answers = at_once(port, data, 8)
            assert [status for status, _, _ in answers] == [200] * 8
            assert all(np.array_equal(np.asarray(Image.open(io.BytesIO(body))), wanted) for _, _, body in answers)
            text = request(port, "GET", "/metrics")[2].decode()
            alone = text.partition('context_heads_batch_images_bucket{le="1.0"} ')[2].split()[0]
            assert float(alone) < 8  # images were predicted together
            assert json.loads(request(port, "GET", "/readyz")[2])["replicas"] == 1
            told(request(port, "POST", "/predict", bomb()), 413)
            assert {
                at for at in listening_at("ray::ServeReplica") if not at.removeprefix("::ffff:").startswith("127.")
            } == set()
            name = next(iter(serve.status().applications))
            kill_replica(ray, name)
            assert request(port, "POST", "/predict", data)[0] in (200, 503)  # it waits for the next, or is told
            deadline = time.monotonic() + 60
            while request(port, "POST", "/predict", data)[0] != 200:
                assert time.monotonic() < deadline
    assert not serve.status().applications
    serve.shutdown()


def listening_at(title):
    """The addresses at which processes of that title listen; there must be some."""
    named = [
        process for process in psutil.Process().children(recursive=True) if title in "".join(process.cmdline()[:1])
    ]
    found = [c.laddr.ip for process in named for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
    assert found
    return set(found)


def kill_replica(ray, name):
    """End the process of an application's replica, as a lack of memory would."""
    replica = next(actor for actor in ray.util.list_named_actors(all_namespaces=True) if name in actor["name"])
    ray.kill(ray.get_actor(**replica), no_restart=True)


@pytest.mark.ray
@pytest.mark.slow
def test_the_door_serves_with_a_token_and_ends_cleanly(checkpoint, model, tmp_path):
    token = tmp_path / "token"
    token.write_text(f"{SECRET}\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.serve", str(checkpoint), "--port", "0", "--token-file", str(token)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while "Ctrl-C ends it" not in (line := process.stdout.readline()):
            assert line, process.communicate()
        port, data = int(line.partition("http://127.0.0.1:")[2].split()[0]), encoded()
        status, _, body = request(port, "POST", "/predict?answer=mask", data)
        assert status == 200
        wanted = model.predict(np.asarray(Image.open(io.BytesIO(data))))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(body))), wanted)
        told(request(port, "POST", "/predict", data, token="wrong"), 401)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err.strip()) == (143, "stopped")
    finally:
        process.kill()
