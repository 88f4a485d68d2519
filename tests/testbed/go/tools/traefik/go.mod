module hearth.test/bed/tools/traefik

go 1.26.0

// Only for its file of definitions, which nothing imports: `go mod tidy` would take this line away.
require github.com/traefik/traefik/v3 v3.7.13
