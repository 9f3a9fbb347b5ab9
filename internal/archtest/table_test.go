package archtest

// imports has a row for each package: what it may import of this module, from the edges down. Tests may import anything.
var imports = map[string]string{
	// Edges
	"cmd/revokd":               "internal/audit internal/devissuer cluster cmd/revokd/internal/bulk internal/app internal/atomicfile internal/bearer internal/clock internal/credentials internal/pki internal/transport node proto/revokd/v1 proto/revokd/v1/revokdv1connect revocation",
	"cmd/revokd/internal/bulk": "proto/revokd/v1 proto/revokd/v1/revokdv1connect revocation",
	"internal/app":             "internal/audit cluster cluster/replication internal/api internal/atomicfile internal/clock internal/credentials internal/devissuer internal/pki internal/transport journal node proto/revokd/v1 proto/revokd/v1/revokdv1connect revocation token ttlstore",
	"internal/api":             "internal/audit cluster cluster/replication cluster/voters internal/bearer internal/credentials internal/devissuer internal/pki journal node proto/revokd/v1 proto/revokd/v1/revokdv1connect revocation token",
	"internal/devissuer":       "token revocation",
	"internal/credentials":     "internal/bearer internal/pki revocation",
	"internal/pki":             "internal/atomicfile internal/clock",
	"internal/bearer":          "",
	"internal/transport":       "",

	"internal/audit": "internal/clock journal",

	// In other programs
	"client": "bloom cluster/replication internal/bearer internal/clock internal/faults internal/pki internal/transport internal/view proto/revokd/v1 proto/revokd/v1/revokdv1connect revocation ttlstore",

	"client/revokdgrpc": "client revocation",
	"client/revokdhttp": "client revocation",
	"client/revokdjwt":  "revocation token",

	// Process
	"node": "cluster cluster/replication cluster/voters internal/atomicfile internal/clock internal/faults internal/view journal revocation ttlstore",

	// Meaning: the only packages that know what a token is
	"revocation": "internal/faults ttlstore",
	"token":      "revocation",

	// Movement
	"journal":                             "internal/faults",
	"cluster":                             "internal/atomicfile internal/clock internal/faults",
	"cluster/replication":                 "cluster/replication/internal/next",
	"cluster/replication/internal/next":   "",
	"cluster/replication/internal/sim":    "cluster/replication cluster/replication/internal/next cluster/voters revocation",
	"cluster/replication/internal/simrun": "cluster/replication/internal/sim internal/history",
	"cluster/voters":                      "",

	// Mechanism: keys, bits, deadlines
	"ttlstore":            "bloom",
	"bloom":               "",
	"internal/atomicfile": "",

	// The public API, generated
	"proto":                           "",
	"proto/revokd/v1":                 "",
	"proto/revokd/v1/revokdv1connect": "proto/revokd/v1",

	// Seams for tests
	"internal/clock":           "internal/faults",
	"internal/clock/clocktest": "internal/clock",
	"internal/view":            "bloom cluster/replication internal/faults revocation",
	"internal/faults":          "",
	"internal/alloctest":       "",
	"internal/archtest":        "",
	"internal/e2e":             "",
	"internal/history":         "internal/clock revocation",
	"internal/history/totals":  "internal/history",
	"internal/mutants":         "internal/faults",
}

// wordless packages are mechanism: they could be used elsewhere, and the word token does not occur in them.
var wordless = []string{"bloom", "ttlstore", "journal", "cluster", "cluster/voters"}

// clockReaders read the clock of the system, each for a reason. Everybody else is given the time.
var clockReaders = map[string]string{
	"internal/clock":                      "the seam itself",
	"internal/faults":                     "looks at its control file at most every 10 ms, in test builds",
	"internal/api":                        "deadlines of connections and durations in metrics, which no verdict depends on",
	"journal":                             "how long an fsync took, and when to try a full disk again; no record depends on it",
	"cluster/replication/internal/simrun": "how long a simulation takes",
	"cmd/revokd":                          "turns the durations that a user types into instants, and shows progress",
}

// panics may stop the process or a request, each for a reason. In commands and tests anything may.
var panics = map[string]string{
	"internal/faults/on.go":           "a test whose fault is not there would prove nothing; test builds only",
	"internal/clock/system_faults.go": "the same",
	"internal/api/interceptor.go":     "passes on http.ErrAbortHandler, which net/http wants",
	"internal/api/guard.go":           "http.ErrAbortHandler closes a connection without an answer",
	"internal/api/backup.go":          "the same: what has been sent of a backup cannot be taken back",
	"internal/api/filter.go":          "the same, of a filter",
	"journal/layout.go":               "the end of a table whose last row takes all",
	"cluster/replication/replica.go":  "numbers that do not follow each other are a bug of the host, and going on would lose records",
	"revocation/match.go":             "Must form, for constants in tests and examples",
}

// library is a module that this one imports by name.
type library struct {
	path    string
	licence string
	why     string
	users   string // packages that may import it; tests may import any
}

// libraries are the direct dependencies. An entry is a decision: its code runs in front of a login.
var libraries = []library{
	{"connectrpc.com/connect", "Apache-2.0", "the API as gRPC and JSON on one port", "client internal/api internal/app cmd/revokd cmd/revokd/internal/bulk proto/revokd/v1/revokdv1connect"},
	{"connectrpc.com/grpchealth", "Apache-2.0", "the health service that gRPC clients ask", "internal/api"},
	{"connectrpc.com/grpcreflect", "Apache-2.0", "lets grpcurl list the API", "internal/api"},
	{"github.com/MicahParks/jwkset", "Apache-2.0", "JSON web keys", "token internal/devissuer"},
	{"github.com/bits-and-blooms/bloom/v3", "BSD-2-Clause", "sizes of filters, and the layout that other languages read", "bloom"},
	{"github.com/dchest/siphash", "CC0-1.0", "SipHash-128, against which tests hold our own", ""},
	{"github.com/golang-jwt/jwt/v5", "MIT", "parses and verifies tokens", "client/revokdjwt token internal/devissuer"},
	{"github.com/hashicorp/go-hclog", "MIT", "logs", "client cmd/revokd internal/app internal/api internal/audit internal/pki token node journal cluster"},
	{"github.com/hashicorp/go-msgpack/v2", "MIT", "decodes memberlist's messages as memberlist does, to see what may pass", "cluster"},
	{"github.com/hashicorp/memberlist", "MPL-2.0", "membership and failure detection", "cluster"},
	{"github.com/mattn/go-isatty", "MIT", "whether a person or a program reads the output", "cmd/revokd"},
	{"github.com/prometheus/client_golang", "Apache-2.0", "metrics, at the edge only", "internal/api"},
	{"github.com/rogpeppe/go-internal", "BSD-3-Clause", "command-line scripts in tests", ""},
	{"github.com/spf13/cobra", "Apache-2.0", "commands, help and shell completion", "cmd/revokd"},
	{"github.com/spf13/pflag", "BSD-3-Clause", "flags of cobra", "cmd/revokd"},
	{"go.opentelemetry.io/otel", "Apache-2.0", "attributes of spans, and the trace that a caller's request belongs to; writes only, off by default", "internal/api internal/app"},
	{"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp", "Apache-2.0", "sends spans, as the standard variables say; brings a part of grpc, of which nothing runs", "internal/app"},
	{"go.opentelemetry.io/otel/sdk", "Apache-2.0", "samples spans and queues them, within limits", "internal/app"},
	{"go.opentelemetry.io/otel/trace", "Apache-2.0", "draws spans", "internal/api internal/app"},
	{"go.opentelemetry.io/proto/otlp", "Apache-2.0", "reads in tests what was sent", ""},
	{"go.uber.org/goleak", "MIT", "finds goroutines without an owner in tests", ""},
	{"go.yaml.in/yaml/v3", "MIT", "the configuration file and the credentials, with the line of each mistake", "cmd/revokd internal/credentials"},
	{"golang.org/x/crypto/x509roots/fallback", "BSD-3-Clause", "certificate authorities where the system has none, as in an image from scratch", "cmd/revokd"},
	{"golang.org/x/net", "BSD-3-Clause", "frames of HTTP/2 that no client sends, in tests", ""},
	{"golang.org/x/sync", "BSD-3-Clause", "errgroup: Run returns when all it started has ended", "internal/audit node internal/app token cmd/revokd/internal/bulk cluster"},
	{"golang.org/x/sys", "BSD-3-Clause", "CLOCK_BOOTTIME, and memory outside the heap", "internal/clock ttlstore"},
	{"golang.org/x/time", "BSD-3-Clause", "how often an issuer is asked for its keys, what one writer may write, and how many strangers are recorded", "token internal/api"},
	{"google.golang.org/genproto/googleapis/rpc", "Apache-2.0", "details of gRPC errors", "client/revokdgrpc"},
	{"google.golang.org/grpc", "Apache-2.0", "interceptors for the servers that most programs use; in tests the client", "client/revokdgrpc"},
	{"google.golang.org/protobuf", "BSD-3-Clause", "messages of the API", "client client/revokdgrpc internal/api internal/app cmd/revokd cmd/revokd/internal/bulk proto/revokd/v1"},
	{"pgregory.net/rapid", "MPL-2.0", "property tests", ""},
}
