# docker build --target cpu -t shfcas .
# docker build --target cuda -t shfcas:cuda .
# docs/container.md says how to use it.

FROM python:3.13-slim-trixie AS builder
# Debian removes versions that it replaces, so none is pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# Where PyTorch's CPU build is; files are taken by their locked hashes alone.
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
COPY . .

FROM builder AS build-cpu
RUN docker/install cpu /opt/shfcas

FROM builder AS build-cuda
RUN docker/install cuda /opt/shfcas

# What runs: neither a compiler nor the sources, and no root.
FROM python:3.13-slim-trixie AS base
RUN useradd --uid 10001 --create-home shfcas && install --directory --owner shfcas /work
COPY docker/health.py /opt/health.py
ENV PATH=/opt/shfcas/bin:$PATH HF_HUB_DISABLE_TELEMETRY=1 PYTHONUNBUFFERED=1
WORKDIR /work
USER 10001
EXPOSE 8900 8901
HEALTHCHECK --interval=30s --timeout=10s --start-period=2m CMD ["python", "/opt/health.py"]
ENTRYPOINT ["shfcas"]
CMD ["--help"]

FROM base AS cuda
# The NVIDIA container toolkit brings the driver's libraries.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-cuda /opt/shfcas /opt/shfcas

# The last stage is what a build without --target makes.
FROM base AS cpu
COPY --from=build-cpu /opt/shfcas /opt/shfcas
