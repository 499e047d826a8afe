# Two images from one file: `service` (no torch) and `trainer`.
#   docker build --target service -t mcf-service .
#   docker build --target trainer -t mcf-trainer .
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
RUN uv pip install --no-cache --override requirements/overrides.txt -r requirements/service.txt
COPY pyproject.toml README.md LICENSE ./
COPY trainer trainer
COPY k8s k8s
COPY service service
RUN uv pip install --no-cache --no-deps . && python -c "import service.app, sys; assert 'torch' not in sys.modules"
USER 10001
ENV MCF_HOST=0.0.0.0 MCF_PORT=8000
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=5)"]
CMD ["python", "-m", "service"]

FROM base AS trainer
COPY requirements/overrides.txt requirements/trainer.txt requirements/
# torch and what it drags in change rarely: a layer of their own.
RUN uv pip install --no-cache $(grep -E '^(torch|torchvision|triton|nvidia-|cuda-)' requirements/trainer.txt)
RUN uv pip install --no-cache --override requirements/overrides.txt -r requirements/trainer.txt
COPY pyproject.toml README.md LICENSE ./
COPY trainer trainer
COPY k8s k8s
COPY service service
# torchvision's compiled operators are built against torch's stable ABI: prove that this pair fits.
RUN uv pip install --no-cache --no-deps . && python -c "import torch, torchvision; torchvision.ops.nms(torch.rand(1, 4), torch.rand(1), .5)"
USER 10001
CMD ["python", "-m", "trainer.main", "--help"]
