// Follows an address with the package eventsource, which is a browser's EventSource for Node: prints each event as a line of JSON.
//
//     CLIENTS_NODE_LIBRARIES=FOLDER node events.mjs URL

import { createRequire } from 'node:module'

const require = createRequire(`${process.env.CLIENTS_NODE_LIBRARIES}/`)
const { EventSource } = require('eventsource')
const print = line => process.stdout.write(JSON.stringify(line) + '\n')

const source = new EventSource(process.argv[2])
source.onopen = () => print({ event: 'open' })
source.onmessage = ({ data, lastEventId }) => print({ event: 'message', data, lastEventId })
source.onerror = ({ code, message }) => print({ event: 'error', code, message, closed: source.readyState === EventSource.CLOSED })
