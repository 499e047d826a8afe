# Three images from one file: `service` (no torch), `trainer`, and the `mlflow` server that the chart starts.
#   docker build --target service -t mcf-service .
# BASE: any image with Python 3.11 and its venv, and with its headers where the trainer is to compile for GPUs; name it by
# digest (python@sha256:...) to build the same image again.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS base
# A virtual environment, because Debian's own Python refuses bare installs; the same path in both images.
RUN python3 -m venv /opt/mcf && /opt/mcf/bin/pip install --no-cache-dir --quiet uv==0.13.9 \
    && useradd --uid 10001 --create-home mcf
ENV PATH=/opt/mcf/bin:$PATH VIRTUAL_ENV=/opt/mcf PYTHONUNBUFFERED=1
WORKDIR /opt/mcf/src
LABEL org.opencontainers.image.title="mcf" org.opencontainers.image.licenses="Apache-2.0"

FROM base AS service
COPY requirements/overrides.txt requirements/service.txt requirements/
# Bytecode is written here: containers have a read-only root file system and would compile at every start. By hash and
# not by time, so that the same sources give the same layer; files that cannot be compiled are never imported.
RUN uv pip install --no-cache --override requirements/overrides.txt -r requirements/service.txt \
    && (python -m compileall -qq -j 0 --invalidation-mode unchecked-hash /opt/mcf/lib || true)
COPY pyproject.toml README.md LICENSE ./
COPY trainer trainer
COPY k8s k8s
COPY service service
RUN echo hatchling==1.33.0 > /tmp/build.txt && uv pip install --no-cache --no-deps --build-constraints /tmp/build.txt . \
    && python -m compileall -qq --invalidation-mode unchecked-hash /opt/mcf/lib/python3*/site-packages/service \
        /opt/mcf/lib/python3*/site-packages/trainer /opt/mcf/lib/python3*/site-packages/k8s \
    && python -c "import service.app, sys; assert 'torch' not in sys.modules"
USER 10001
ENV MCF_HOST=0.0.0.0 MCF_PORT=8000
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=5)"]
CMD ["python", "-m", "service"]
ARG VERSION=0.1.0 REVISION=unknown
LABEL org.opencontainers.image.description="mcf: service" \
    org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"

FROM base AS mlflow
COPY requirements/overrides.txt requirements/local.txt requirements/
# Versions are those that the tests run against. Flask-WTF and WTForms are what basic-auth needs on top of them.
RUN uv pip install --no-cache --override requirements/overrides.txt --constraint requirements/local.txt \
        "mlflow[auth]" "psycopg[binary]" boto3 flask-wtf==1.3.0 wtforms==3.3.2 \
    && (python -m compileall -qq -j 0 --invalidation-mode unchecked-hash /opt/mcf/lib || true)
WORKDIR /tmp
USER 10001
# Its job runner would start eight more processes for features nobody here uses.
ENV MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false HOME=/tmp
EXPOSE 5000
HEALTHCHECK CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:5000/health', timeout=5)"]
CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000", "--workers", "1"]
ARG VERSION=0.1.0 REVISION=unknown
LABEL org.opencontainers.image.description="mcf: MLflow server" \
    org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"

FROM base AS trainer
COPY requirements/overrides.txt requirements/trainer.txt requirements/
# torch and what it drags in change rarely: a layer of their own.
RUN uv pip install --no-cache $(grep -E '^(torch|torchvision|triton|nvidia-|cuda-)' requirements/trainer.txt)
RUN uv pip install --no-cache --override requirements/overrides.txt -r requirements/trainer.txt
# Triton needs a C compiler where it first compiles for a GPU (placement.compile). This one is a wheel; of its headers
# those of other systems go.
RUN uv pip install --no-cache ziglang==0.17.1 && cd /opt/mcf/lib/python3*/site-packages/ziglang/lib/libc \
    && rm -rf mingw musl wasi darwin freebsd netbsd openbsd && cd include \
    && find . -mindepth 1 -maxdepth 1 ! -name '*linux-any' ! -name '*linux-gnu' ! -name 'generic-glibc' -exec rm -rf {} + \
    && printf '#!/bin/sh\nexec /opt/mcf/bin/python -m ziglang cc "$@"\n' > /opt/mcf/bin/zig-cc && chmod +x /opt/mcf/bin/zig-cc
ENV CC=/opt/mcf/bin/zig-cc ZIG_GLOBAL_CACHE_DIR=/tmp/zig ZIG_LOCAL_CACHE_DIR=/tmp/zig
# A restarted worker is back sooner (see the service); after the installs, so that torch's layer stays what it is.
RUN python -m compileall -qq -j 0 --invalidation-mode unchecked-hash /opt/mcf/lib || true
COPY pyproject.toml README.md LICENSE ./
COPY trainer trainer
COPY k8s k8s
COPY service service
# torchvision's compiled operators are built against torch's stable ABI: prove that this pair fits.
RUN echo hatchling==1.33.0 > /tmp/build.txt && uv pip install --no-cache --no-deps --build-constraints /tmp/build.txt . \
    && python -m compileall -qq --invalidation-mode unchecked-hash /opt/mcf/lib/python3*/site-packages/service \
        /opt/mcf/lib/python3*/site-packages/trainer /opt/mcf/lib/python3*/site-packages/k8s \
    && python -c "import torch, torchvision; torchvision.ops.nms(torch.rand(1, 4), torch.rand(1), .5)"
# The same for the compiler, where the base has Python's headers; in an image without them runs train uncompiled.
RUN headers=$(python -c "import sysconfig; print(sysconfig.get_paths()['include'])") \
    && if [ -f "$headers/Python.h" ]; then \
        echo '#include <Python.h>' | $CC -x c - -shared -fPIC -o /tmp/proof.so "-I$headers" && rm -r /tmp/proof.so /tmp/zig; \
    else echo "WARNING: no $headers/Python.h: networks cannot be compiled for GPUs in this image"; fi
USER 10001
CMD ["python", "-m", "trainer.main", "--help"]
ARG VERSION=0.1.0 REVISION=
LABEL org.opencontainers.image.description="mcf: trainer" \
    org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"
# Every run writes down what it was trained with.
ENV MCF_REVISION=${REVISION}
