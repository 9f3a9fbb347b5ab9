# Two ways to the same image. Without pulling anything, from a binary that is there:
#
#   make build && docker build --target prebuilt -t revokd .
#
# and from the sources, with the Go image:
#
#   docker build -t revokd .
FROM scratch AS prebuilt
COPY bin/revokd /revokd
# Directories that belong to the user, so that new volumes do too.
COPY --chown=65532:65532 deploy/docker/empty /data
COPY --chown=65532:65532 deploy/docker/empty /secrets
USER 65532:65532
ENTRYPOINT ["/revokd"]
CMD ["agent"]

FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-X main.version=$VERSION" -o /revokd ./cmd/revokd

FROM scratch
COPY --from=build /revokd /revokd
COPY --chown=65532:65532 deploy/docker/empty /data
COPY --chown=65532:65532 deploy/docker/empty /secrets
USER 65532:65532
ENTRYPOINT ["/revokd"]
CMD ["agent"]
