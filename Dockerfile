# Training and evaluation on GPUs, in a container. Linted (hadolint), never built: we had no Docker engine.
#
#   docker build --tag ssd .
#   docker run --rm ssd                                             # lists the keys and their values
#   mkdir -p runs
#   docker run --rm --gpus all --ipc=host --user "$(id -u):$(id -g)" \
#       --volume /path/to/coco:/coco:ro --volume "$PWD/runs:/app/runs" \
#       ssd torchrun --standalone --nproc_per_node=8 train.py experiment=coco_8x128 data.path=/coco
#
# --ipc=host: NCCL passes data between ranks in shared memory; without this a container has only 64 MB of it.
# --user: you own the files that the run writes. Results stay in runs/; give evaluate.py out=runs/….json.
#
# Why the plain CUDA image and not NGC's PyTorch: NGC ships a custom torch build that matches no released version,
# so requirements.txt would install a second torch of several gigabytes on top of it. The pinned wheels bring their
# own CUDA libraries. The base image adds the check that the host's driver is new enough for CUDA 13, and the
# libraries that let data-center GPUs run CUDA 13 on an older driver.
# Python is Ubuntu's 3.12. The pins were tested on 3.11; pip finds a 3.12 build of each.
FROM nvidia/cuda:13.0.3-base-ubuntu24.04

# runtime.compile=true needs g++ and python3-dev, as it compiles C++ at run time. Downloading model.weights needs
# ca-certificates.
# Versions aren't pinned: Ubuntu removes old package versions, so pins would break the build.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu's own Python refuses pip packages, hence the venv. This large layer changes only with the pins.
COPY requirements.txt /tmp/requirements.txt
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --requirement /tmp/requirements.txt

# scripts/ import ssd and data, hence PYTHONPATH. Cache folders are set because the --user may have no home folder.
# ImageNet weights are kept in runs/, so that the next container finds them.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    TORCH_HOME=/app/runs/.torch \
    XDG_CACHE_HOME=/app/runs/.cache \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor

# Any user may create files here (runs/, demo/, a report), but only root may change the code.
WORKDIR /app
RUN chmod 1777 /app && install --directory --mode=1777 /app/runs
COPY . .

# Ubuntu's default user, as a number, so that Kubernetes can tell that it isn't root.
USER 1000:1000
CMD ["python", "train.py", "--help"]
