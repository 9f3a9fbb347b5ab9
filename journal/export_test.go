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

// WithSegments makes small segments.
func (c RepairConfig) WithSegments(bytes int64) RepairConfig {
	c.segmentBytes = bytes
	return c
}

// WithSegments makes small segments.
func (c RestoreConfig) WithSegments(bytes int64) RestoreConfig {
	c.segmentBytes = bytes
	return c
}
