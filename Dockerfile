# Training and evaluation on GPUs, in a container. Linted (hadolint), never built by us: no Docker engine was at hand.
#
#   docker build --tag ssd .
#   docker run --rm ssd                                             # the keys and their values
#   mkdir -p runs
#   docker run --rm --gpus all --ipc=host --user "$(id -u):$(id -g)" \
#       --volume /path/to/coco:/coco:ro --volume "$PWD/runs:/app/runs" \
#       ssd torchrun --standalone --nproc_per_node=8 train.py experiment=coco_8x128 data.path=/coco
#
# --ipc=host: NCCL passes data between ranks in shared memory, of which a container has 64 MB otherwise.
# --user: what the run writes is yours. Results stay in runs/; give evaluate.py out=runs/….json.
#
# Why the plain CUDA image and not NGC's PyTorch: the torch in it is a build of its own that no released version
# names, and requirements.txt would lay a second one over it, with all its gigabytes. The pinned wheels bring their
# own CUDA libraries. What the base adds is the check that the host's driver is new enough for CUDA 13, and the
# libraries that let data-centre GPUs run it on an older one.
# Python is Ubuntu's 3.12; the pins were tested on 3.11, and pip finds a build of each for 3.12.
FROM nvidia/cuda:13.0.3-base-ubuntu24.04

# g++ and python3-dev are for runtime.compile=true, which compiles C++ while it runs; ca-certificates for the
# download of model.weights.
# Ubuntu keeps no old version of a package, so a pin would only break the build.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu's own Python takes no packages from pip. This layer is large and changes with the pins alone.
COPY requirements.txt /tmp/requirements.txt
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --requirement /tmp/requirements.txt

# Modules of scripts/ import ssd and data too. The caches are named because --user may name a user without a home:
# ImageNet's weights are kept in runs/, so that the next container finds them.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    TORCH_HOME=/app/runs/.torch \
    XDG_CACHE_HOME=/app/runs/.cache \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor

# Any user may make files here (runs/, demo/, a report), and none but root may change the code.
WORKDIR /app
RUN chmod 1777 /app && install --directory --mode=1777 /app/runs
COPY . .

# Ubuntu's first ordinary user, by number, so that Kubernetes can see that it isn't root.
USER 1000:1000
CMD ["python", "train.py", "--help"]
