# docker build -f docker/cuda.Dockerfile --build-arg TORCH_CUDA_ARCH_LIST=9.0 -t dlu_mmdet:cuda .
# docker run --rm --gpus all -v "$PWD:/work" dlu_mmdet:cuda train CONFIG.py
ARG TORCH=2.8.0-cuda12.8-cudnn9
FROM pytorch/pytorch:${TORCH}-devel AS build
# of the GPUs that will run it; each adds to the time of the compile
ARG TORCH_CUDA_ARCH_LIST="8.0;8.6;8.9;9.0"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 MMCV_WITH_OPS=1 FORCE_CUDA=1
WORKDIR /src
COPY requirements requirements
RUN pip install -r requirements/build.txt \
    && grep mmcv requirements/onedl.txt > mmcv.txt \
    && pip wheel --no-build-isolation --no-deps -w /wheels -r mmcv.txt
COPY . .
RUN pip wheel --no-build-isolation --no-deps -w /wheels .

FROM pytorch/pytorch:${TORCH}-runtime
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# OpenCV loads these
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
RUN --mount=from=build,source=/wheels,target=/wheels \
    --mount=from=build,source=/src/requirements,target=/requirements \
    pip install /wheels/*.whl -r /requirements/onedl.txt -r /requirements/convert.txt
WORKDIR /work
ENTRYPOINT ["dlu_mmdet"]
CMD ["--version"]
