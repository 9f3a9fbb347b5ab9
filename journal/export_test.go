package journal

import "github.com/revokd/revokd/internal/faults"

// WithMutant returns a configuration with a bug that the tests must notice. An unknown name is a panic: it would prove nothing.
func WithMutant(cfg Config, name string) Config {
	if !faults.Known(name) {
		panic("journal: no mutant is called " + name)
	}
	cfg.mutant = func(asked string) bool { return asked == name }
	return cfg
}
