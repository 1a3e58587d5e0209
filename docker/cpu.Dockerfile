# docker build -f docker/cpu.Dockerfile -t dlu_mmdet .
# docker run --rm -v "$PWD:/work" dlu_mmdet train CONFIG.py
FROM python:3.11-slim-bookworm AS build
# an index with torch for the CPU alone, which is a tenth of the size
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 MMCV_WITH_OPS=1
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /src
# before the sources, so that a change of them does not compile mmcv again
COPY requirements requirements
RUN pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch==2.13.0 -r requirements/build.txt \
    && pip install --no-build-isolation -r requirements/onedl.txt \
        -r requirements/convert.txt -r requirements/export.txt
COPY . .
RUN pip install --no-build-isolation .

FROM python:3.11-slim-bookworm
# OpenCV and the compiled operators load these
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /work
ENTRYPOINT ["dlu_mmdet"]
CMD ["--version"]
