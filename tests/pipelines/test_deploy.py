"""Pages that bring clusters up, by the schemas of who reads them; the image's steps; a cluster that grows for a run."""

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

import jsonschema
import pytest
import yaml
from heads import RAY, end, free_port, head, wait_for, with_token
from ray.autoscaler._private.util import prepare_config, validate_config

from pipelines.base.door import ROOT
from pipelines.cluster.inside_ray import types_in

CLUSTERS = ("cluster.yaml", "cluster-gcp.yaml", "cluster-local.yaml")


def page(name):
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_up_accepts_each_page_and_no_typo(name):
    validate_config(prepare_config(page(name)))
    wrong = page(name) | {"setup_command": []}
    with pytest.raises(Exception, match="setup_command"):
        validate_config(prepare_config(wrong))


@pytest.mark.parametrize("name", CLUSTERS)
def test_heads_ask_for_a_token_listen_on_loopback_and_bound_their_logs(name):
    """And each page sets nodes up as the others do."""
    starts = {key: " ".join(page(name)[f"{key}_start_ray_commands"]) for key in ("head", "worker")}
    for words in starts.values():
        assert re.search(r"RAY_AUTH_MODE=token .*RAY_ROTATION_MAX_BYTES=\d+ RAY_ROTATION_BACKUP_COUNT=\d ", words)
        assert "--metrics-export-port=8080" in words
    assert "--dashboard-host=127.0.0.1" in starts["head"]
    assert "mlflow server --host 127.0.0.1" in starts["head"]
    first = page(CLUSTERS[0])
    for key in ("setup_commands", "head_start_ray_commands", "file_mounts"):
        assert page(name)[key] == first[key]
    common = page(name)["worker_start_ray_commands"][:2]
    assert common == first["worker_start_ray_commands"][:2]  # Amazon's nodes look out for its notice, too


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster-gcp.yaml"])
def test_clouds_start_spot_gpus_for_a_run_only(name):
    cluster = page(name)
    assert types_in(cluster) == [({"CPU": 48, "GPU": 4}, 4)]
    assert cluster["available_node_types"]["gpu"]["min_workers"] == 0
    assert "GPU" not in cluster["available_node_types"]["head"]["resources"]
    assert "SPOT" in json.dumps(cluster["available_node_types"]["gpu"]).upper()


# ---- jobs


def ignored(name):
    """Lines of a file of patterns, as .dockerignore would have them: from the top, no slash before them."""
    lines = (ROOT / name).read_text().splitlines()
    return {line.lstrip("/").removeprefix("**/") for line in lines if line and not line.startswith("#")}


def test_what_stays_at_home_is_one_list():
    from ray.runtime_env import RuntimeEnv

    environment = page("runtime_env.yaml")
    assert environment["excludes"] == (ROOT / ".rayignore").read_text().split()
    assert ignored(".dockerignore") == ignored(".rayignore")
    assert {".git", "data", "runs", "tests"} <= ignored(".rayignore")
    checked = RuntimeEnv(env_vars=environment["env_vars"], excludes=environment["excludes"])
    assert checked.env_vars() == {"RAY_JOB_STOP_WAIT_TIME_S": "60"}


# ---- Kubernetes


def check(manifest):
    """The manifest by KubeRay's fields, each of its pods by Kubernetes' schema."""
    import kubernetes_validate

    jsonschema.validate(manifest, yaml.safe_load((ROOT / "tests/pipelines/rayjob_fields.yaml").read_text()))
    cluster = manifest["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": group["template"]}
        kubernetes_validate.validate(pod, "1.30", strict=True)


def test_kuberay_and_kubernetes_accept_the_job():
    check(page("rayjob.yaml"))


@pytest.mark.parametrize(
    ("place", "key"),
    [
        ("", "entryPoint"),
        ("rayClusterSpec", "rayversion"),
        ("rayClusterSpec.workerGroupSpecs.0", "minReplica"),
        ("rayClusterSpec.headGroupSpec.template.spec.containers.0", "enviroment"),
        ("rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.resources", "limit"),
    ],
)
def test_a_misspelt_field_of_the_job_is_refused(place, key):
    manifest = copy.deepcopy(page("rayjob.yaml"))
    part = manifest["spec"]
    for name in filter(None, place.split(".")):
        part = part[int(name) if name.isdigit() else name]
    part[key] = {}
    with pytest.raises(Exception, match=key):
        check(manifest)


def test_the_job_runs_what_the_image_holds():
    import ray

    spec, steps = page("rayjob.yaml")["spec"], dict(instructions())
    cluster = spec["rayClusterSpec"]
    assert yaml.safe_load(spec["runtimeEnvYAML"])["working_dir"] == f"local://{steps['WORKDIR']}"
    assert cluster["rayVersion"].split(".")[:2] == ray.__version__.split(".")[:2]
    assert (ROOT / spec["entrypoint"].split()[1]).is_file()
    recipe, count = spec["entrypoint"].split()[2], int(re.search(r"workers.count=(\d+)", spec["entrypoint"])[1])
    assert (ROOT / f"pipelines/recipes/{recipe}.yaml").is_file()
    (group,) = cluster["workerGroupSpecs"]
    gpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert group["replicas"] * gpus == count
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]


# ---- the image


def instructions():
    """The Dockerfile's instructions with their words, in order."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    return [tuple(line.split(" ", 1)) for line in lines if line and not line.startswith("#")]


def test_the_images_steps_are_the_readmes():
    runs = [words for name, words in instructions() if name == "RUN"]
    readme = (ROOT / "README.md").read_text()
    assert "pip install uv && uv run" in readme
    steps = ("pip install --no-cache-dir uv", "uv sync --no-dev", "pipelines.train sample --print")
    order = [next(i for i, words in enumerate(runs) if step in words) for step in steps]
    assert order == sorted(order)
    for name, words in instructions():
        if name == "COPY":
            *sources, _ = [word for word in words.split() if not word.startswith("--")]
            assert all((ROOT / source).exists() for source in sources)


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root, for a root of its own")
def test_the_images_steps_work_in_a_clean_root(tmp_path):
    """One by one, on a copy of this system's files that is laid over them: a home and a folder with nothing in it."""
    done = in_clean_root(tmp_path, image_script())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "name: reconet" in done.stdout


BASE = """set -eu
export HOME=/root
rm -f /usr/lib/python3*/EXTERNALLY-MANAGED  # an image of Python's has none, and no user of that number
there=$(getent passwd 1000 | cut -d: -f1); [ -z "$there" ] || userdel "$there"
"""


def image_script():
    """The Dockerfile as a shell script that runs as root; what it copies lies in /source."""
    script, user, folder, path = [BASE], "", "/", ""
    for name, words in instructions():
        if name == "USER":
            user = words
        elif name == "WORKDIR":
            folder = words
        elif name == "ENV":
            path = words.removeprefix("PATH=").removesuffix(":$PATH") + ":"
        elif name == "COPY":
            *sources, target = [word for word in words.split() if not word.startswith("--")]
            script += [f"cp -r /source/{source} {folder}/{target}" for source in sources]
            script += [f"chown -R {user} {folder}"]
        elif name == "RUN":
            step = f"cd {folder}; export PATH={path}$PATH; {words}"
            script.append(f"su -p {user} -c 'export HOME=/home/{user}; {step}'" if user else f"({step})")
    return "\n".join(script)


def in_clean_root(folder, script):
    """A script's end, in a root of its own: this system's programs below layers of their own, all else new."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in files.split("\0"):
        if name and name.partition("/")[0] not in ignored(".dockerignore"):
            (folder / "root/source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "root/source" / name)
    (folder / "root/steps.sh").write_text(script)
    around = f"""
set -eu
cd {folder}
for name in usr etc var; do
    mkdir -p root/$name upper/$name scratch/$name
    mount -t overlay overlay -o lowerdir=/$name,upperdir=$PWD/upper/$name,workdir=$PWD/scratch/$name root/$name
done
cd root
cp -P /bin /sbin /lib /lib64 . && mkdir proc dev home root && mkdir -m 1777 tmp
mount -t proc proc proc && mount --rbind /dev dev
chroot . bash /steps.sh
"""
    network = ("SSL_CERT_FILE", "PIP_INDEX_URL", "UV_DEFAULT_INDEX", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
    plain = {key: os.environ[key] for key in network if key in os.environ}
    plain |= {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    return subprocess.run(["unshare", "-m", "bash", "-c", around], capture_output=True, text=True, env=plain)


# ---- what runs on the head


@pytest.mark.long
@pytest.mark.parametrize(
    ("more", "names"),
    [
        ("", {"localhost": 200, "127.0.0.1": 200, "10.0.0.7:5000": 200, "mlflow:5000": 403, "example.org": 403}),
        (" --allowed-hosts mlflow,mlflow:*", {"mlflow": 200, "mlflow:5000": 200, "10.0.0.7:5000": 403}),
    ],
)
def test_mlflow_of_the_head_answers_known_names_only_and_its_log_does_not_grow(more, names, tmp_path):
    """By the command of cluster.yaml, on another port; and with a name that it is told."""
    words = next(line for line in page("cluster.yaml")["head_start_ray_commands"] if "mlflow server" in line)
    command = re.search(r"mlflow server (.*?) > ", words)[1].replace("$HOME", str(tmp_path)).replace("/shared", "/tmp")
    port, log, known = free_port(), tmp_path / "mlflow.log", next(iter(names))
    with log.open("w") as sink:
        server = subprocess.Popen(
            [RAY.with_name("mlflow"), "server", *shlex.split(command.replace("5000", str(port)) + more)],
            stdout=sink, stderr=sink, start_new_session=True, cwd=tmp_path,
        )  # fmt: skip
    try:
        wait_for(lambda: answer(port, known) == 200)
        assert {name: answer(port, name) for name in names} == names
        before = log.stat().st_size
        for _ in range(100):
            answer(port, known)
        assert log.stat().st_size == before, log.read_text()[-300:]
    finally:
        end(server.pid, str(tmp_path / "mlflow.db"))
        server.wait(60)


def answer(port, name):
    """The status with which a server on loopback answers who calls it by a name; 0 where none does."""
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get?experiment_id=0")
    asked.add_header("Host", name)
    try:
        return urllib.request.urlopen(asked, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


PRINTS = """
import ray
ray.init(log_to_driver=False)
def shout():
    for line in range(4000):
        print("x" * 99, flush=True)
ray.get(ray.remote(num_cpus=0)(shout).remote())
"""


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.xdist_group("commands")
def test_logs_of_rays_processes_rotate(tmp_path):
    """With the variables of the pages, at smaller values: of 400 kB printed 150 kB are kept."""
    port, known = free_port(), with_token(tmp_path / "token")
    bound = {"RAY_ROTATION_MAX_BYTES": "50000", "RAY_ROTATION_BACKUP_COUNT": "2"}
    words = [f"--port={port}", "--num-cpus=1", "--include-dashboard=false"]
    with head(tmp_path / "head.log", known | bound, *words) as started:
        own = known | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
        done = subprocess.run([sys.executable, "-c", PRINTS], env=own, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        sizes = [file.stat().st_size for file in started.logs.glob("worker-*.out*") if file.stat().st_size > 1000]
        assert len(sizes) in (2, 3)  # the third is the current one, which may just have been begun
        assert max(sizes) <= 51_000
