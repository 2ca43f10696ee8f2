# The sidecar as an image. Build first, then:
#   npm install --ignore-scripts && npm run build && docker build -t legate .
# Another base: --build-arg BASE=IMAGE, with Node 20.19 or newer; where it has ip, nft and nsenter already, as an image of
# your own may, nothing is fetched. deploy/README.md says how to run it, and with which rights.
ARG BASE=node:22-bookworm-slim
FROM ${BASE}

RUN if command -v ip && command -v nft && command -v nsenter; then exit 0; fi; \
    if command -v apk; then apk add --no-cache iproute2 nftables util-linux-misc; exit; fi; \
    apt-get update && apt-get install -y --no-install-recommends iproute2 nftables util-linux && \
    rm -rf /var/lib/apt/lists/*

# What the bundled command loads at run time; .dockerignore leaves out everything else.
COPY package.json LICENSE /opt/legate/
COPY node_modules /opt/legate/node_modules
COPY build/sidecar/cli /opt/legate/build/sidecar/cli
COPY deploy/legate.sh /usr/local/bin/legate

ENV NODE_ENV=production
# Does the sidecar answer? What is wrong on the host it says itself, and it does not get better by a restart.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 CMD ["legate", "status"]
ENTRYPOINT ["node", "/opt/legate/build/sidecar/cli/main.js"]
CMD ["agent"]
