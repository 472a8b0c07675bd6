# The server: the packages of requirements/serve.lock, helpers/, and the bundle in model/ for where the bucket has none.
# It writes to /tmp alone, so it runs with a read-only root file system:
#   docker run --read-only --tmpfs /tmp -p 8080:8080 -e SUITE_BUCKET=gs://NAME -e SUITE_ADMIN_TOKEN=... cifar100-suite
# BASE is any image with Python 3.11 to 3.13 and venv as python3; pin it by digest for builds that can be repeated.
ARG BASE=python:3.12-slim

FROM ${BASE} AS packages
COPY requirements/serve.lock /serve.lock
RUN python3 -m venv /opt/suite && \
    /opt/suite/bin/python -m pip install --no-cache-dir --disable-pip-version-check --only-binary :all: \
      --require-hashes -r /serve.lock && \
    /opt/suite/bin/python -m pip uninstall -qq --yes pip
# Tests, headers, and the plugins for devices that the server never asks for.
RUN cd /opt/suite/lib/python3.*/site-packages && \
    find . -type d \( -name tests -o -name include \) -prune -exec rm -rf {} + && \
    rm -f openvino/libs/libopenvino_intel_[gn]pu_plugin.so openvino/libs/cache.json

FROM ${BASE}
COPY --from=packages /opt/suite /opt/suite
WORKDIR /app
COPY LICENSE ./
COPY helpers/ helpers/
COPY model/ model/
ENV PATH=/opt/suite/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp XDG_CACHE_HOME=/tmp
RUN python -m compileall -q helpers
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/health/ready', timeout=2)"]
CMD ["python", "-m", "helpers.hosting", "--host", "0.0.0.0", "--port", "8080", "--watch"]
