# The gateway as an image: `docker build -t hx-gateway .`
# EXTRAS chooses optional parts (see pyproject.toml); add `local` to serve model files, `rag` for vectors in the state directory.
FROM python:3.11-slim AS build
ARG EXTRAS=postgres,redis,qdrant,otel
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY requirements ./requirements
COPY src ./src
RUN python -m venv /opt/hx-gateway \
 && /opt/hx-gateway/bin/pip install --no-cache-dir --disable-pip-version-check -c requirements/constraints.txt ".[${EXTRAS}]" \
 && /opt/hx-gateway/bin/pip uninstall --yes --disable-pip-version-check pip setuptools

FROM python:3.11-slim
COPY --from=build /opt/hx-gateway /opt/hx-gateway
ENV PATH=/opt/hx-gateway/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    STATE_DIRECTORY=/var/lib/hx-gateway \
    API_GATEWAY_HOST=0.0.0.0 \
    API_GATEWAY_PORT=8000
RUN install -d -o 10001 -g 10001 -m 750 /var/lib/hx-gateway
USER 10001:10001
VOLUME /var/lib/hx-gateway
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["hx-gateway", "verify", "--ready", "--url", "http://127.0.0.1:8000"]
ENTRYPOINT ["hx-gateway"]
CMD ["serve"]
