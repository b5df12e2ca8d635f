/**
 * What of etcd's v3 API is used, as gRPC sees it: names and numbers of fields (https://etcd.io/docs/v3.4/dev-guide/api_reference_v3/).
 * Numbers of 64 bits come as text.
 */
import { type GrpcObject, type ServiceClientConstructor, loadPackageDefinition } from '@grpc/grpc-js'
import { fromJSON } from '@grpc/proto-loader'

type Fields = Record<string, [type: string, id: number] | [type: string, id: number, 'repeated']>
const message = (fields: Fields, oneofs: Record<string, string[]> = {}) => ({
  oneofs: Object.fromEntries(Object.entries(oneofs).map(([name, oneof]) => [name, { oneof }])),
  fields: Object.fromEntries(
    Object.entries(fields).map(([name, [type, id, rule]]) => [name, { type, id, ...(rule ? { rule } : {}) }]),
  ),
})
const unary = (name: string) => ({ requestType: `${name}Request`, responseType: `${name}Response` })
const both = (name: string) => ({ ...unary(name), requestStream: true, responseStream: true })

const DESCRIPTION = {
  nested: {
    mvccpb: {
      nested: {
        KeyValue: message({
          key: ['bytes', 1],
          create_revision: ['int64', 2],
          mod_revision: ['int64', 3],
          version: ['int64', 4],
          value: ['bytes', 5],
          lease: ['int64', 6],
        }),
        Event: {
          ...message({ type: ['EventType', 1], kv: ['KeyValue', 2], prev_kv: ['KeyValue', 3] }),
          nested: { EventType: { values: { PUT: 0, DELETE: 1 } } },
        },
      },
    },
    etcdserverpb: {
      nested: {
        KV: { methods: { Range: unary('Range'), Txn: unary('Txn'), Compact: unary('Compaction') } },
        Watch: { methods: { Watch: both('Watch') } },
        Cluster: {
          methods: {
            MemberAdd: unary('MemberAdd'),
            MemberRemove: unary('MemberRemove'),
            MemberList: unary('MemberList'),
            MemberPromote: unary('MemberPromote'),
          },
        },
        Maintenance: {
          methods: { Alarm: unary('Alarm'), Status: unary('Status'), Defragment: unary('Defragment') },
        },
        Lease: {
          methods: {
            LeaseGrant: unary('LeaseGrant'),
            LeaseRevoke: unary('LeaseRevoke'),
            LeaseKeepAlive: both('LeaseKeepAlive'),
            LeaseLeases: unary('LeaseLeases'),
          },
        },
        ResponseHeader: message({ cluster_id: ['uint64', 1], member_id: ['uint64', 2], revision: ['int64', 3] }),
        RangeRequest: message({
          key: ['bytes', 1],
          range_end: ['bytes', 2],
          limit: ['int64', 3],
          revision: ['int64', 4],
        }),
        RangeResponse: message({
          header: ['ResponseHeader', 1],
          kvs: ['mvccpb.KeyValue', 2, 'repeated'],
          more: ['bool', 3],
        }),
        PutRequest: message({ key: ['bytes', 1], value: ['bytes', 2], lease: ['int64', 3] }),
        PutResponse: message({ header: ['ResponseHeader', 1] }),
        DeleteRangeRequest: message({ key: ['bytes', 1], range_end: ['bytes', 2] }),
        DeleteRangeResponse: message({ header: ['ResponseHeader', 1], deleted: ['int64', 2] }),
        RequestOp: message(
          {
            request_range: ['RangeRequest', 1],
            request_put: ['PutRequest', 2],
            request_delete_range: ['DeleteRangeRequest', 3],
            request_txn: ['TxnRequest', 4],
          },
          { request: ['request_range', 'request_put', 'request_delete_range', 'request_txn'] },
        ),
        ResponseOp: message(
          {
            response_range: ['RangeResponse', 1],
            response_put: ['PutResponse', 2],
            response_delete_range: ['DeleteRangeResponse', 3],
            response_txn: ['TxnResponse', 4],
          },
          { response: ['response_range', 'response_put', 'response_delete_range', 'response_txn'] },
        ),
        Compare: {
          ...message(
            {
              result: ['CompareResult', 1],
              target: ['CompareTarget', 2],
              key: ['bytes', 3],
              version: ['int64', 4],
              create_revision: ['int64', 5],
              mod_revision: ['int64', 6],
            },
            { target_union: ['version', 'create_revision', 'mod_revision'] },
          ),
          nested: {
            CompareResult: { values: { EQUAL: 0, GREATER: 1, LESS: 2, NOT_EQUAL: 3 } },
            CompareTarget: { values: { VERSION: 0, CREATE: 1, MOD: 2, VALUE: 3, LEASE: 4 } },
          },
        },
        TxnRequest: message({
          compare: ['Compare', 1, 'repeated'],
          success: ['RequestOp', 2, 'repeated'],
          failure: ['RequestOp', 3, 'repeated'],
        }),
        TxnResponse: message({
          header: ['ResponseHeader', 1],
          succeeded: ['bool', 2],
          responses: ['ResponseOp', 3, 'repeated'],
        }),
        CompactionRequest: message({ revision: ['int64', 1], physical: ['bool', 2] }),
        CompactionResponse: message({ header: ['ResponseHeader', 1] }),
        WatchRequest: message(
          { create_request: ['WatchCreateRequest', 1], progress_request: ['WatchProgressRequest', 3] },
          { request_union: ['create_request', 'progress_request'] },
        ),
        WatchProgressRequest: message({}),
        WatchCreateRequest: message({
          key: ['bytes', 1],
          range_end: ['bytes', 2],
          start_revision: ['int64', 3],
          prev_kv: ['bool', 6],
          fragment: ['bool', 8],
        }),
        WatchResponse: message({
          header: ['ResponseHeader', 1],
          watch_id: ['int64', 2],
          created: ['bool', 3],
          canceled: ['bool', 4],
          compact_revision: ['int64', 5],
          cancel_reason: ['string', 6],
          fragment: ['bool', 7],
          events: ['mvccpb.Event', 11, 'repeated'],
        }),
        LeaseGrantRequest: message({ TTL: ['int64', 1], ID: ['int64', 2] }),
        LeaseGrantResponse: message({
          header: ['ResponseHeader', 1],
          ID: ['int64', 2],
          TTL: ['int64', 3],
          error: ['string', 4],
        }),
        LeaseRevokeRequest: message({ ID: ['int64', 1] }),
        LeaseRevokeResponse: message({ header: ['ResponseHeader', 1] }),
        LeaseKeepAliveRequest: message({ ID: ['int64', 1] }),
        LeaseKeepAliveResponse: message({ header: ['ResponseHeader', 1], ID: ['int64', 2], TTL: ['int64', 3] }),
        LeaseLeasesRequest: message({}),
        LeaseLeasesResponse: message({ header: ['ResponseHeader', 1], leases: ['LeaseStatus', 2, 'repeated'] }),
        LeaseStatus: message({ ID: ['int64', 1] }),
        Member: message({
          ID: ['uint64', 1],
          name: ['string', 2],
          peerURLs: ['string', 3, 'repeated'],
          clientURLs: ['string', 4, 'repeated'],
          isLearner: ['bool', 5],
        }),
        MemberAddRequest: message({ peerURLs: ['string', 1, 'repeated'], isLearner: ['bool', 2] }),
        MemberAddResponse: message({ member: ['Member', 2], members: ['Member', 3, 'repeated'] }),
        MemberRemoveRequest: message({ ID: ['uint64', 1] }),
        MemberRemoveResponse: message({ members: ['Member', 2, 'repeated'] }),
        MemberListRequest: message({}),
        MemberListResponse: message({ members: ['Member', 2, 'repeated'] }),
        MemberPromoteRequest: message({ ID: ['uint64', 1] }),
        MemberPromoteResponse: message({ members: ['Member', 2, 'repeated'] }),
        StatusRequest: message({}),
        StatusResponse: message({
          header: ['ResponseHeader', 1],
          version: ['string', 2],
          dbSize: ['int64', 3],
          leader: ['uint64', 4],
          raftIndex: ['uint64', 5],
          raftTerm: ['uint64', 6],
          raftAppliedIndex: ['uint64', 7],
          dbSizeInUse: ['int64', 9],
          isLearner: ['bool', 10],
        }),
        DefragmentRequest: message({}),
        DefragmentResponse: message({}),
        AlarmRequest: {
          ...message({ action: ['AlarmAction', 1], memberID: ['uint64', 2], alarm: ['AlarmType', 3] }),
          nested: { AlarmAction: { values: { GET: 0, ACTIVATE: 1, DEACTIVATE: 2 } } },
        },
        AlarmType: { values: { NONE: 0, NOSPACE: 1, CORRUPT: 2 } },
        AlarmMember: message({ memberID: ['uint64', 1], alarm: ['AlarmType', 2] }),
        AlarmResponse: message({ alarms: ['AlarmMember', 2, 'repeated'] }),
      },
    },
  },
}

const loaded = loadPackageDefinition(
  // Services have no fields, which the type of this form does not know.
  fromJSON(DESCRIPTION as unknown as Parameters<typeof fromJSON>[0], {
    keepCase: true,
    longs: String,
    enums: String,
    defaults: true,
    arrays: true,
    oneofs: true,
  }),
)
const service = (name: string) => (loaded['etcdserverpb'] as GrpcObject)[name] as ServiceClientConstructor
export const SERVICES = {
  KV: service('KV'),
  Watch: service('Watch'),
  Lease: service('Lease'),
  Cluster: service('Cluster'),
  Maintenance: service('Maintenance'),
} as const
export type ServiceName = keyof typeof SERVICES

export type Header = { cluster_id: string; revision: string; member_id: string }
export type Member = { ID: string; name: string; peerURLs: string[]; clientURLs: string[]; isLearner: boolean }
export type StatusReply = {
  header: Header
  version: string
  dbSize: string
  leader: string
  raftIndex: string
  raftTerm: string
  raftAppliedIndex: string
  dbSizeInUse: string
  isLearner: boolean
}
export type AlarmType = 'NONE' | 'NOSPACE' | 'CORRUPT'
export type KeyValue = {
  key: Buffer
  value: Buffer
  create_revision: string
  mod_revision: string
  version: string
  lease: string
}
export type RangeReply = { header: Header; kvs: KeyValue[]; more: boolean }
export type TxnReply = { header: Header; succeeded: boolean; responses: ResponseOp[] }
export type ResponseOp = { response_range?: RangeReply; response_txn?: TxnReply }
export type EtcdEvent = { type: 'PUT' | 'DELETE'; kv: KeyValue; prev_kv: KeyValue | null }
export type WatchReply = {
  header: Header
  created: boolean
  canceled: boolean
  compact_revision: string
  cancel_reason: string
  fragment: boolean
  events: EtcdEvent[]
}

export type Compare = {
  key: Buffer
  result: 'EQUAL' | 'GREATER'
  target: 'VERSION' | 'CREATE' | 'MOD'
  version?: number
  create_revision?: number
  mod_revision?: number
}
export type Txn = { compare: Compare[]; success: RequestOp[]; failure: RequestOp[] }
export type RequestOp =
  | { request_range: { key: Buffer } }
  | { request_put: { key: Buffer; value: Buffer; lease?: string } }
  | { request_delete_range: { key: Buffer; range_end?: Buffer } }
  | { request_txn: Txn }
