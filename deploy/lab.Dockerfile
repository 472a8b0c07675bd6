# JupyterLab with the notebooks, for a virtual machine with an NVIDIA GPU; CUDA comes with the packages, the driver from
# the machine:
#   make image FILE=deploy/lab.Dockerfile IMAGE=cifar100-lab
#   docker run --gpus all -p 127.0.0.1:8888:8888 -e JUPYTER_TOKEN=... -v "$PWD/runs:/app/runs" cifar100-lab
ARG BASE=python:3.12-slim

FROM ${BASE}
COPY requirements/gpu.lock /gpu.lock
RUN python3 -m venv /opt/suite && \
    /opt/suite/bin/python -m pip install --no-cache-dir --disable-pip-version-check --only-binary :all: \
      --require-hashes -r /gpu.lock
WORKDIR /app
COPY LICENSE environment.yml run_pipeline.py ./
COPY helpers/ helpers/
COPY model/ model/
COPY notebooks/ notebooks/
COPY params/ params/
ENV PATH=/opt/suite/bin:$PATH PYTHONUNBUFFERED=1 HOME=/app
RUN chown -R 1000:1000 /app
USER 1000:1000
EXPOSE 8888
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8888/api', timeout=4)"]
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--port=8888", "--no-browser", "--ServerApp.root_dir=/app/notebooks"]
