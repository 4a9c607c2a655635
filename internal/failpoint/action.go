package failpoint

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// rule is a failpoint's file.
type rule struct {
	after, times int
	token        string // file; the process that removes it fires,
	next         string // or renames it to this
	action       []string
}

func parse(text string) (r rule, err error) {
	words := strings.Fields(text)
	for len(words) >= 2 && err == nil {
		switch words[0] {
		case "after":
			r.after, err = hitsOf(words[1])
		case "times":
			r.times, err = hitsOf(words[1])
		case "token":
			r.token, r.next, _ = strings.Cut(words[1], ">")
		default:
			r.action = words
			return r, nil
		}
		words = words[2:]
	}
	if len(words) == 0 && err == nil {
		err = errors.New("no action")
	}
	r.action = words
	return r, err
}

func hitsOf(word string) (int, error) {
	n, err := strconv.Atoi(word)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is not a number of hits", word)
	}
	return n, nil
}

// Check says what is wrong with the text of a failpoint's file, before it is
// written. It works in binaries without failpoints, too.
func Check(text string) error {
	r, err := parse(text)
	if err != nil {
		return err
	}
	switch verb, rest := r.action[0], r.action[1:]; {
	case len(rest) == 0 && (verb == "kill" || verb == "stop" || verb == "hang"):
		return nil
	case len(rest) > 0 && verb == "error":
		return nil
	case len(rest) == 1 && verb == "sleep":
		_, err := time.ParseDuration(rest[0])
		return err
	}
	return fmt.Errorf("%q: there are kill, stop, hang, sleep DURATION, error TEXT; before them, after N, times N or token FILE", strings.Join(r.action, " "))
}
