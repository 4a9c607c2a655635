package failpoint

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// parse returns the action, and whether the n-th hit makes it due.
func parse(words []string, n int) (action []string, due bool, err error) {
	after, times := 0, 0
	for len(words) >= 2 && (words[0] == "after" || words[0] == "times") {
		v, err := strconv.Atoi(words[1])
		if err != nil || v < 0 {
			return nil, false, fmt.Errorf("%q is not a number of hits", words[1])
		}
		if words[0] == "after" {
			after = v
		} else {
			times = v
		}
		words = words[2:]
	}
	if len(words) == 0 {
		return nil, false, errors.New("no action")
	}
	return words, n > after && (times == 0 || n <= after+times), nil
}

// Check says what is wrong with the text of a failpoint's file, before it is
// written. It works in binaries without failpoints, too.
func Check(text string) error {
	action, _, err := parse(strings.Fields(text), 1)
	if err != nil {
		return err
	}
	switch verb, rest := action[0], action[1:]; {
	case len(rest) == 0 && (verb == "kill" || verb == "stop" || verb == "hang"):
		return nil
	case len(rest) > 0 && verb == "error":
		return nil
	case len(rest) == 1 && verb == "sleep":
		_, err := time.ParseDuration(rest[0])
		return err
	}
	return fmt.Errorf("%q: there are kill, stop, hang, sleep DURATION, error TEXT; before them, after N or times N", strings.Join(action, " "))
}
