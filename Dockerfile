# The project and its environment in one image, for rayjob.yaml and every container runtime:
#   docker build -t context-heads .
#   docker run --rm --shm-size=2g context-heads python -m pipelines.voc_pretrain
# Its steps are the README's: `pip install uv`, then uv. CUDA comes with torch; the machine brings the GPUs' driver.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# KubeRay asks whether a node is well by wget
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 trainer && mkdir /context-heads && chown trainer /context-heads
RUN pip install --no-cache-dir uv

USER trainer
WORKDIR /context-heads
# the environment first: it changes seldom, and takes most of the time
COPY --chown=trainer pyproject.toml ./
RUN uv sync --no-dev --no-cache
COPY --chown=trainer . .
ENV PATH=/context-heads/.venv/bin:$PATH
# all is there that the first recipe is built of
RUN python -m pipelines.train sample --print
