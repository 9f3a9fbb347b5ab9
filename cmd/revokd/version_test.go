package main

import (
	"runtime/debug"
	"testing"
)

func TestStamp(t *testing.T) {
	built := func(version string, settings ...debug.BuildSetting) *debug.BuildInfo {
		return &debug.BuildInfo{Main: debug.Module{Version: version}, Settings: settings}
	}
	revision, at := debug.BuildSetting{Key: "vcs.revision", Value: "abc"}, debug.BuildSetting{Key: "vcs.time", Value: "2026-01-02T03:04:05Z"}
	for _, c := range []struct {
		linked [3]string
		info   *debug.BuildInfo
		want   [3]string
	}{
		{[3]string{}, nil, [3]string{"dev", "", ""}},
		{[3]string{}, built("(devel)", revision, at), [3]string{"dev", "abc", "2026-01-02T03:04:05Z"}},
		{[3]string{}, built("v1.2.3"), [3]string{"v1.2.3", "", ""}},
		{[3]string{"v2", "def", "then"}, built("v1.2.3", revision, at), [3]string{"v2", "def", "then"}},
	} {
		v, commit, date := stamp(c.linked[0], c.linked[1], c.linked[2], c.info)
		if got := [3]string{v, commit, date}; got != c.want {
			t.Errorf("%v: %v, want %v", c.linked, got, c.want)
		}
	}
}
