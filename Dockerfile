# Two images: `train` makes a bundle, `server` serves bundles and holds no torch. Build arguments reach pip, for those
# who install from elsewhere (torch's CPU builds, for one, are far smaller where they are to be had).
FROM docker.io/library/python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/elman/bin:$PATH
RUN python3 -m venv /opt/elman \
    && useradd --uid 10001 --create-home elman \
    && mkdir /bundles /sessions && chown elman /bundles /sessions
WORKDIR /home/elman

FROM base AS wheel
ARG PIP_FIND_LINKS
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY pyproject.toml README.md LICENSE /source/
COPY bundle /source/bundle
COPY client /source/client
COPY export /source/export
COPY protos /source/protos
COPY server /source/server
COPY training /source/training
RUN pip wheel --quiet --no-deps --wheel-dir /wheels /source

FROM base AS train
ARG PIP_FIND_LINKS
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY constraints.txt /wheels/
RUN pip install --quiet --constraint /wheels/constraints.txt torch==2.13.0
COPY --from=wheel /wheels /wheels
RUN pip install --quiet --constraint /wheels/constraints.txt "$(echo /wheels/elman-*.whl)[training]"
USER elman
VOLUME /bundles
COPY --chmod=755 deploy/train.sh /usr/local/bin/
CMD ["train.sh"]

FROM base AS server
ARG PIP_FIND_LINKS
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# "server,cuda" adds the CUDA libraries for a host with an NVIDIA GPU.
ARG EXTRAS=server
COPY constraints.txt /wheels/
COPY --from=wheel /wheels /wheels
RUN pip install --quiet --constraint /wheels/constraints.txt "$(echo /wheels/elman-*.whl)[$EXTRAS]"
USER elman
VOLUME /sessions
# Every setting of the server is a variable: elman serve --help.
ENV ELMAN_BUNDLES=/bundles \
    ELMAN_LISTEN=0.0.0.0:50051 \
    ELMAN_LOG_FORMAT=json
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["elman", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["elman"]
CMD ["serve"]
