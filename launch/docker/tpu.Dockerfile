# skipalign for TPU VMs, with the versions of requirements.lock. In the root of a clone:
#
#   docker build -f launch/docker/tpu.Dockerfile -t skipalign:tpu .
#   docker run --rm --init --user "$(id -u)" --privileged --network=host \
#     -v "$PWD:/project" -v skipalign_cache:/home/skipalign/.cache skipalign:tpu \
#     train --config=llama2_ntk:tiny --workdir=runs/tiny
#
# On a TPU VM; its devices are seen by a privileged container only.

FROM python:3.11-slim-bookworm AS build
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /source
COPY pyproject.toml requirements.txt requirements.lock README.md LICENSE ./
COPY configs configs
COPY skipalign_jax skipalign_jax
RUN uv venv /opt/skipalign && VIRTUAL_ENV=/opt/skipalign uv pip install --no-cache \
  --constraints requirements.lock --build-constraints requirements.lock \
  --compile-bytecode ".[all,tpu]"

FROM python:3.11-slim-bookworm
COPY --from=build /opt/skipalign /opt/skipalign
ENV HOME=/home/skipalign USER=skipalign PATH=/opt/skipalign/bin:$PATH
# Any user may write here: --user takes every number.
RUN install -d -m 1777 /home/skipalign /home/skipalign/.cache /project
# Tokenized samples, compiled programs, what comes from the hub.
VOLUME /home/skipalign/.cache
WORKDIR /project
USER 1000:1000
ENTRYPOINT ["skipalign"]
CMD ["--help"]
