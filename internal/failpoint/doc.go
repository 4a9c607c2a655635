// Package failpoint lets tests and labs stop a daemon at a named place: just
// before a record is synced, just after it. Binaries built without the tag
// "failpoints" hold only an empty function.
//
// With the tag, the folder named by BMC_FAILPOINTS holds one file for each
// point that shall fire, named like the point with '/' as '.'. Its text is
// [after N] [times N] [token FILE] and one of:
//
//	kill            SIGKILL to this process
//	stop            SIGSTOP to this process
//	hang            wait until the file is gone
//	sleep DURATION  wait that long
//	error TEXT      return an error; "error ENOSPC" is syscall.ENOSPC
//
// "after N" lets the first N hits pass, "times N" (default: always) ends after
// N. Of several processes with the same token only one fires, once: the one that removes
// FILE. "token FILE>OTHER" renames it instead, which makes it the token of the next point in the
// same moment. What fired is appended to fired.jsonl in the same folder, before it fires.
package failpoint
